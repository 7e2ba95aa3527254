//! Formats an error and its sources as one line, with the cure for what any call may run out of.

use std::error::Error;

/// Joins `error` and its chain of sources by `: `, in one line.
///
/// A source whose text the line already contains is left out: a layer may repeat the text of the
/// one below. If this process or the host has run out of something, the line ends with the cure, in
/// parentheses.
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
    if let Some(cure) = error_number(&line).and_then(cure_of_exhaustion)
        && !line.contains(cure)
    {
        line = format!("{line} ({cure})");
    }
    line.replace('\n', " ")
}

/// Returns the cure where error number `errno` states that something has run out, whatever was
/// tried.
///
/// Other numbers mean something else for each call, so the layer that made the call explains them.
pub fn cure_of_exhaustion(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EMFILE => Some("this process has no file descriptor left: raise `ulimit -n`"),
        libc::ENFILE => Some("the host can open no more files: raise fs.file-max"),
        libc::ENOMEM => Some("the host, or the memory limit of this process's cgroup, has no memory left"),
        _ => None,
    }
}

/// Returns the number of the last system call's error in `text`.
///
/// Errors of the standard library and of rust-vmm end with `(os error 24)`, those of nix begin with
/// `EMFILE: `. Some crates have no source for such an error, only its text.
fn error_number(text: &str) -> Option<i32> {
    let after = text.rsplit_once("(os error ").map(|(_, after)| after);
    let number = after.and_then(|after| after.split(')').next()?.parse().ok());
    let names = [("EMFILE: ", libc::EMFILE), ("ENFILE: ", libc::ENFILE), ("ENOMEM: ", libc::ENOMEM)];
    number.or_else(|| Some(names.iter().find(|(name, _)| text.contains(name))?.1))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Cannot create a map")]
    struct Layer(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn exhaustion_at_any_layer_ends_the_line_with_its_cure() {
        let io = |errno| io::Error::from_raw_os_error(errno);
        let sources: [Box<dyn Error + Send + Sync>; 4] = [
            Box::new(io(libc::EMFILE)),
            Box::new(nix::errno::Errno::EMFILE),
            Box::new(vmm_sys_util::errno::Error::new(libc::EMFILE)),
            Box::new(Layer(Box::new(io(libc::EMFILE)))),
        ];
        for source in sources {
            let line = one_line(&Layer(source));
            assert!(line.starts_with("Cannot create a map: "), "{line}");
            assert!(
                line.ends_with("(this process has no file descriptor left: raise `ulimit -n`)"),
                "{line}"
            );
            assert_eq!(line.matches("ulimit").count(), 1, "{line}");
        }
        assert!(one_line(&io(libc::ENFILE)).ends_with("raise fs.file-max)"));
        assert!(one_line(&io(libc::ENOMEM)).contains("cgroup"));
    }

    #[test]
    fn error_number_that_depends_on_the_call_has_no_general_cure() {
        for errno in [libc::EPERM, libc::EACCES, libc::EINVAL, libc::EBUSY, libc::EAGAIN, libc::ENOENT] {
            assert_eq!(cure_of_exhaustion(errno), None);
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(one_line(&error), error.to_string());
        }
    }
}
