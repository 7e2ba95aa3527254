//! Atomics: the processor's own, or those of a model checker.
//!
//! Parking and the locks take their atomics from here. In the payload and in ordinary tests they
//! are those of `core`. With the feature `loom` or `shuttle` they are the checker's, which observes
//! every access and chooses the next thread. The checked sources are thus the sources that run in
//! the guest.
//!
//! Two things differ in a model:
//!
//! - Its atomics cannot be created at compile time. `const_new!` defines constructors that are
//!   `const` outside of models only.
//! - The checker follows each atomic, so there are 4 vCPUs and not 255. `const_array!` builds
//!   arrays of either size.

#[cfg(not(modelled))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(feature = "loom")]
pub use in_loom::{AtomicU32, AtomicU64, Ordering};
#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Number of vCPUs that locks have room for.
#[cfg(not(modelled))]
pub const SLOTS: usize = protocol::MAX_VCPUS;
/// Number of vCPUs that locks have room for.
#[cfg(modelled)]
pub const SLOTS: usize = 4;

/// Defines a constructor of a type that holds atomics: a `const fn`.
#[cfg(not(modelled))]
macro_rules! const_new {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),*) -> $made:ty $body:block) => {
        $(#[$doc])* $visible const fn $name($($argument: $type),*) -> $made $body
    };
}
/// Defines a constructor of a type that holds atomics: not `const` in a model.
#[cfg(modelled)]
macro_rules! const_new {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),*) -> $made:ty $body:block) => {
        $(#[$doc])* $visible fn $name($($argument: $type),*) -> $made $body
    };
}

/// Builds an array of `$count` values of the expression `$make`.
#[cfg(not(modelled))]
macro_rules! const_array {
    ($make:expr; $count:expr) => {
        [const { $make }; $count]
    };
}
/// Builds an array of `$count` values of the expression `$make`.
#[cfg(modelled)]
macro_rules! const_array {
    ($make:expr; $count:expr) => {
        core::array::from_fn::<_, { $count }, _>(|_| $make)
    };
}
pub(crate) use {const_array, const_new};

/// Loom's atomics with the guarantees of x86.
///
/// Loom treats a sequentially consistent access as acquire or release; only fences are sequentially
/// consistent. So each such access gets a fence on either side. A store becomes an exchange: loom
/// does not order a plain store after an earlier exchange, and would let the exchange's value come
/// back.
#[cfg(feature = "loom")]
mod in_loom {
    pub use loom::sync::atomic::Ordering;
    use loom::sync::atomic::fence;

    fn fenced<R>(ordering: Ordering, access: impl FnOnce() -> R) -> R {
        if ordering != Ordering::SeqCst {
            return access();
        }
        fence(Ordering::SeqCst);
        let result = access();
        fence(Ordering::SeqCst);
        result
    }

    macro_rules! atomic {
        ($name:ident, $word:ty) => {
            /// Loom's atomic, with fences.
            #[derive(Debug)]
            pub struct $name(loom::sync::atomic::$name);

            #[expect(missing_docs, clippy::missing_errors_doc, reason = "as in core")]
            impl $name {
                pub fn new(value: $word) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }
                pub fn load(&self, ordering: Ordering) -> $word {
                    fenced(ordering, || self.0.load(ordering))
                }
                pub fn store(&self, value: $word, ordering: Ordering) {
                    match ordering {
                        Ordering::SeqCst => drop(self.swap(value, ordering)),
                        ordering => self.0.store(value, ordering),
                    }
                }
                pub fn swap(&self, value: $word, ordering: Ordering) -> $word {
                    fenced(ordering, || self.0.swap(value, ordering))
                }
                pub fn fetch_add(&self, value: $word, ordering: Ordering) -> $word {
                    fenced(ordering, || self.0.fetch_add(value, ordering))
                }
                pub fn fetch_sub(&self, value: $word, ordering: Ordering) -> $word {
                    fenced(ordering, || self.0.fetch_sub(value, ordering))
                }
                pub fn fetch_or(&self, value: $word, ordering: Ordering) -> $word {
                    fenced(ordering, || self.0.fetch_or(value, ordering))
                }
                pub fn fetch_and(&self, value: $word, ordering: Ordering) -> $word {
                    fenced(ordering, || self.0.fetch_and(value, ordering))
                }
                pub fn compare_exchange(
                    &self,
                    current: $word,
                    new: $word,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$word, $word> {
                    fenced(success, || self.0.compare_exchange(current, new, success, failure))
                }
            }
        };
    }
    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
}
