//! An error and its causes, as one line.

use std::error::Error;

/// `error`, and what it was caused by, down to the last. What a layer repeats of the one below is said once.
pub fn in_one_line(error: &dyn Error) -> String {
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
