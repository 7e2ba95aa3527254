//! Values of parameters: how each type is parsed and written.

use core::fmt;

/// A type that a parameter can have.
pub(super) trait Value: Copy + PartialEq {
    /// What a value must be, to complete "the value must be".
    const EXPECTED: &'static str;
    /// All values by name; empty for numbers.
    const CHOICES: &'static [&'static str] = &[];

    /// Parses `text`, or returns `None` if it is not a value of this type.
    fn parse(text: &str) -> Option<Self>;

    /// Writes the value as [`Value::parse`] reads it.
    fn write(self, out: &mut dyn fmt::Write) -> fmt::Result;
}

macro_rules! numbers {
    ($($type:ty: $expected:literal),+) => {
        $(
            impl Value for $type {
                const EXPECTED: &'static str = $expected;

                fn parse(text: &str) -> Option<Self> {
                    text.parse().ok()
                }

                fn write(self, out: &mut dyn fmt::Write) -> fmt::Result {
                    write!(out, "{self}")
                }
            }

            /// A number that the command line may leave out.
            impl Value for Option<$type> {
                const EXPECTED: &'static str = $expected;

                fn parse(text: &str) -> Option<Self> {
                    text.parse().ok().map(Some)
                }

                fn write(self, out: &mut dyn fmt::Write) -> fmt::Result {
                    self.map_or(Ok(()), |number| number.write(out))
                }
            }
        )+
    };
}

numbers!(u16: "a 16-bit number", u32: "a number of at most 4294967295", u64: "a 64-bit number");

impl Value for bool {
    const EXPECTED: &'static str = "on or off";
    const CHOICES: &'static [&'static str] = &["on", "off"];

    fn parse(text: &str) -> Option<Self> {
        match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        }
    }

    fn write(self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(if self { "on" } else { "off" })
    }
}
