//! The escape key: how a user gets out of a guest that has the terminal to itself.
//!
//! While the terminal is raw, every key is the guest's, Ctrl-C too. Only what follows Ctrl-A is ours: `x` ends the run,
//! another Ctrl-A is one for the guest. Anything else goes to the guest with the Ctrl-A before it.

/// Ctrl-A.
pub const ESCAPE: u8 = 0x01;

/// Ends the run, after [`ESCAPE`].
const END: u8 = b'x';

/// What has been typed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Escape {
    /// The last key was the escape key.
    is_open: bool,
}

impl Escape {
    /// Takes what was typed, and gives what of it is the guest's; `None` when the user wants the run to end.
    pub fn take(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut for_guest = Vec::with_capacity(typed.len() + 1);
        for key in typed.iter().copied() {
            match (self.is_open, key) {
                (false, ESCAPE) => self.is_open = true,
                (false, key) => for_guest.push(key),
                (true, END) => return None,
                (true, ESCAPE) => {
                    self.is_open = false;
                    for_guest.push(ESCAPE);
                }
                (true, key) => {
                    self.is_open = false;
                    for_guest.extend([ESCAPE, key]);
                }
            }
        }
        Some(for_guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_escape_is_the_guest_s() {
        let mut escape = Escape::default();
        assert_eq!(escape.take(b"ls\x03\r"), Some(b"ls\x03\r".to_vec()));
        assert_eq!(escape.take(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(escape.take(b"\x01b"), Some(b"\x01b".to_vec()));
        assert_eq!(escape.take(b"\x01c"), Some(b"\x01c".to_vec()));
    }

    #[test]
    fn escape_and_x_end_the_run_also_when_they_come_one_by_one() {
        assert_eq!(Escape::default().take(b"q\x01x"), None);
        let mut escape = Escape::default();
        assert_eq!(escape.take(b"\x01"), Some(Vec::new()));
        assert_eq!(escape.take(b"x"), None);
    }
}
