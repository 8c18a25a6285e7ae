//! Values that were decoded once for all requests of a record.

use std::{any::Any, sync::OnceLock};

/// A list that only grows, by one value for each type that the program asks for, so that values can
/// be borrowed and are found without a lock.
#[derive(Default)]
pub(super) struct Decoded(OnceLock<Box<Node>>);

struct Node {
    value: Box<dyn Any + Send + Sync>,
    next: Decoded,
}

impl Decoded {
    /// The value of type `T`, made by `decode` if there is none.
    pub(super) fn get_or_init<T: Send + Sync + 'static>(&self, decode: impl FnOnce() -> T) -> &T {
        let mut decode = Some(decode);
        let mut place = self;
        loop {
            let node = place.0.get_or_init(|| {
                let value: Box<dyn Any + Send + Sync> = match decode.take() {
                    Some(decode) => Box::new(decode()),
                    // Not reached: the first node that is made here has the type.
                    None => Box::new(()),
                };
                Box::new(Node { value, next: Self::default() })
            });
            if let Some(value) = node.value.downcast_ref() {
                return value;
            }
            place = &node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn each_type_is_decoded_once_by_all_threads() {
        let (decoded, calls) = (Decoded::default(), AtomicUsize::new(0));
        let count = |value: usize| {
            calls.fetch_add(1, Ordering::Relaxed);
            value
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert_eq!(*decoded.get_or_init(|| count(7)), 7);
                    assert_eq!(*decoded.get_or_init(|| Some(count(8))), Some(8));
                    assert_eq!(decoded.get_or_init(|| count(9).to_string()), "9");
                });
            }
        });
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        assert_eq!(*decoded.get_or_init(|| count(1)), 7);
    }
}
