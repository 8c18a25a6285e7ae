use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

/// An interner: keys with equal values share one copy, although each record was read separately.
/// This saves memory and improves cache locality.
pub(super) struct Copies<T>(Mutex<HashSet<T>>);

/// When full, the interner is emptied; later values are shared among themselves.
const MAX_COPIES: usize = 1024;

impl<T: Clone + Eq + Hash> Copies<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Returns the interned copy of `value`, interning it if necessary.
    pub(super) fn of(&self, value: &T) -> T {
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = copies.get(value) {
            return copy.clone();
        }
        if copies.len() >= MAX_COPIES {
            copies.clear();
        }
        copies.insert(value.clone());
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_equal_is_one_and_there_are_not_too_many() {
        let copies = Copies::new();
        let copy = |text: &str| copies.of(&Arc::<str>::from(text));
        let first = copy("orders:read");
        assert!(Arc::ptr_eq(&first, &copy("orders:read")));
        assert_eq!(&*copy("orders:write"), "orders:write");
        for number in 0..2 * MAX_COPIES {
            copy(&number.to_string());
        }
        assert!(copies.0.lock().unwrap().len() <= MAX_COPIES);
        assert!(!Arc::ptr_eq(&first, &copy("orders:read")), "it was evicted and interned again");
    }
}
