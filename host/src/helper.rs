//! Helper threads: those of the monitor that must run beside real-time vCPU threads on all CPUs.
//!
//! A helper registers itself. While vCPU threads are in a real-time class, a scheduler raises all
//! helpers above them.

use std::sync::{Mutex, MutexGuard};

use libc::pid_t;

use crate::sync;
use crate::thread::{Class, own_tid, set_class};

/// The helpers, and their class if it is not the default one.
struct Helpers {
    tids: Vec<pid_t>,
    class: Option<Class>,
}

/// A registered helper thread. Dropping it, on that thread, ends the registration.
#[derive(Debug)]
pub struct Helper(pid_t);

/// Registers the calling thread. If the helpers are raised, it is raised too.
pub fn register() -> Helper {
    let tid = own_tid();
    let mut helpers = helpers();
    helpers.tids.push(tid);
    if let Some(class) = helpers.class {
        // Without the privilege it keeps its share as a thread of the fair class.
        let _ = set_class(tid, class);
    }
    Helper(tid)
}

/// Sets the class of all helpers, present and future. Without the privilege they keep theirs.
pub fn raise(class: Class) {
    set_all(Some(class), class);
}

/// Puts all helpers back into the fair class.
pub fn lower() {
    set_all(None, Class::Fair);
}

fn set_all(future: Option<Class>, class: Class) {
    let mut helpers = helpers();
    helpers.class = future;
    for tid in &helpers.tids {
        let _ = set_class(*tid, class);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        helpers().tids.retain(|tid| *tid != self.0);
    }
}

fn helpers() -> MutexGuard<'static, Helpers> {
    static HELPERS: Mutex<Helpers> = Mutex::new(Helpers { tids: Vec::new(), class: None });
    sync::lock(&HELPERS)
}
