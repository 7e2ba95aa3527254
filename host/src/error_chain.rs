//! Formats an error and its sources as one line.

use std::error::Error;

/// Joins `error` and its chain of sources by `: `, in one line.
///
/// A source whose text the line already contains is left out: a layer may repeat the text of the
/// one below.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        source = error.source();
    }
    line.replace('\n', " ")
}
