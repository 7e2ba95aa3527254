//! Values of words.

use super::names::Named;
use super::{MAX_LOCKS, WordError};

pub(super) fn named<'a, T: Named>(word: &'a str, value: &str) -> Result<T, WordError<'a>> {
    T::from_word(value).ok_or(WordError::BadValue { word, expected: T::EXPECTED })
}

pub(super) fn number<'a>(word: &'a str, value: &str) -> Result<u32, WordError<'a>> {
    value.parse().map_err(|_| WordError::BadValue { word, expected: "a number of at most 4294967295" })
}

pub(super) fn long<'a>(word: &'a str, value: &str) -> Result<u64, WordError<'a>> {
    value.parse().map_err(|_| WordError::BadValue { word, expected: "a 64-bit number" })
}

pub(super) fn nonzero<'a>(word: &'a str, value: &str) -> Result<u32, WordError<'a>> {
    match number(word, value)? {
        0 => Err(WordError::BadValue { word, expected: "more than 0" }),
        number => Ok(number),
    }
}

pub(super) fn locks<'a>(word: &'a str, value: &str) -> Result<u32, WordError<'a>> {
    match number(word, value) {
        Ok(count) if (1..=MAX_LOCKS).contains(&count) => Ok(count),
        _ => Err(WordError::BadValue { word, expected: "a number from 1 to 8" }),
    }
}

pub(super) fn percent<'a>(word: &'a str, value: &str) -> Result<u32, WordError<'a>> {
    match number(word, value) {
        Ok(share) if share <= 100 => Ok(share),
        _ => Err(WordError::BadValue { word, expected: "a number from 0 to 100" }),
    }
}

pub(super) fn switch<'a>(word: &'a str, value: &str) -> Result<bool, WordError<'a>> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(WordError::BadValue { word, expected: "on or off" }),
    }
}
