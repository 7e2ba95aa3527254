//! Atomics, named in one place: the processor's on the metal, a model checker's off it.
//!
//! Parking and the locks take their atomics from here. In the payload and in ordinary tests these are those of `core`. With
//! the feature `loom` or `shuttle` they are that checker's, which sees every access and chooses who goes on: so the sources
//! that run on the metal are the sources that are checked.
//!
//! Two things differ in a model. Its atomics cannot be made at compile time, so what makes a lock is a `const fn` only on
//! the metal (`maker!`); and there are places for four vCPUs, not for 255 (`each!`), since a checker follows each atomic.

#[cfg(not(modelled))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(feature = "loom")]
pub use in_loom::{AtomicU32, AtomicU64, Ordering};
#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// vCPUs that there is place for.
#[cfg(not(modelled))]
pub const PLACES: usize = protocol::MAX_VCPUS;
/// vCPUs that there is place for.
#[cfg(modelled)]
pub const PLACES: usize = 4;

/// Defines a function that makes something of atomics: `const` on the metal.
#[cfg(not(modelled))]
macro_rules! maker {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),*) -> $made:ty $body:block) => {
        $(#[$doc])* $visible const fn $name($($argument: $type),*) -> $made $body
    };
}
/// Defines a function that makes something of atomics.
#[cfg(modelled)]
macro_rules! maker {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),*) -> $made:ty $body:block) => {
        $(#[$doc])* $visible fn $name($($argument: $type),*) -> $made $body
    };
}

/// An array of what `$make` gives, each made anew.
#[cfg(not(modelled))]
macro_rules! each {
    ($make:expr; $count:expr) => {
        [const { $make }; $count]
    };
}
/// An array of what `$make` gives, each made anew.
#[cfg(modelled)]
macro_rules! each {
    ($make:expr; $count:expr) => {
        core::array::from_fn::<_, { $count }, _>(|_| $make)
    };
}
pub(crate) use {each, maker};

/// Loom takes a sequentially consistent access for an acquiring or releasing one, and only a sequentially consistent fence
/// for what it is. So each such access gets a fence on either side: what our stores and loads promise each other, and
/// what x86 does. A store becomes an exchange, as on x86: loom does not order a plain store after an exchange that it follows
/// in time, and would have the exchange's value come back.
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
            /// Loom's, with fences.
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
