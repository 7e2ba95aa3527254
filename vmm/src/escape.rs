//! The escape key: how a user ends a guest that owns the terminal.
//!
//! A raw terminal sends every key to the guest, Ctrl-C included. Ctrl-A is the escape key. Followed
//! by `x` it ends the run; followed by another Ctrl-A it sends one Ctrl-A. Before any other key,
//! both reach the guest.

/// Ctrl-A, the escape key.
const ESCAPE: u8 = 0x01;

/// Ends the run, after [`ESCAPE`].
const END: u8 = b'x';

/// The state of the escape sequence between two reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Escape {
    /// Whether the last key was the escape key.
    is_open: bool,
}

impl Escape {
    /// Returns the part of `typed` that is meant for the guest; `None` when the user ends the run.
    pub fn filter(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
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
    fn all_keys_but_the_escape_sequence_reach_the_guest() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ls\x03\r"), Some(b"ls\x03\r".to_vec()));
        assert_eq!(escape.filter(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(escape.filter(b"\x01b"), Some(b"\x01b".to_vec()));
        assert_eq!(escape.filter(b"\x01c"), Some(b"\x01c".to_vec()));
    }

    #[test]
    fn escape_and_x_end_the_run_in_one_read_or_two() {
        assert_eq!(Escape::default().filter(b"q\x01x"), None);
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"\x01"), Some(Vec::new()));
        assert_eq!(escape.filter(b"x"), None);
    }
}
