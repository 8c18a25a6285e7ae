use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

/// An interner: keys with equal values share one copy, although each record was read separately.
/// This saves memory and improves cache locality.
pub(in crate::auth) struct Interner<T>(Mutex<HashSet<T>>);

/// When full, the interner is emptied; later values are shared among themselves.
const MAX_COPIES: usize = 1024;

impl<T: Clone + Eq + Hash> Interner<T> {
    pub(in crate::auth) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Returns the interned copy of `value`, interning it if necessary.
    pub(in crate::auth) fn of(&self, value: &T) -> T {
        let mut interner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = interner.get(value) {
            return copy.clone();
        }
        if interner.len() >= MAX_COPIES {
            interner.clear();
        }
        interner.insert(value.clone());
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_equal_is_one_and_there_are_not_too_many() {
        let interner = Interner::new();
        let copy = |text: &str| interner.of(&Arc::<str>::from(text));
        for number in 1..MAX_COPIES {
            copy(&format!("scope:{number}"));
        }
        assert_eq!(interner.0.lock().unwrap().len(), MAX_COPIES - 1, "nothing was evicted early");
        interner.0.lock().unwrap().clear();
        let first = copy("orders:read");
        assert!(Arc::ptr_eq(&first, &copy("orders:read")));
        assert_eq!(&*copy("orders:write"), "orders:write");
        for number in 0..2 * MAX_COPIES {
            copy(&number.to_string());
        }
        assert!(interner.0.lock().unwrap().len() <= MAX_COPIES);
        assert!(!Arc::ptr_eq(&first, &copy("orders:read")), "it was evicted and interned again");
    }
}
