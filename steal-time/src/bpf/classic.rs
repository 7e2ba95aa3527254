//! The tracepoints of the classic program, by their descriptions in tracefs.
//!
//! A program for a tracepoint's record reads it at fixed offsets, and takes them on trust. So the loader compares them with
//! what the running kernel says of the record, and refuses where they differ.

use std::path::Path;

use super::BpfError;
use host::tracefs::{TraceFs, TraceFsError};

/// The fields that the classic program reads of `sched_switch` (`struct sched_switch` there): name, offset and size.
const SWITCH_FIELDS: [(&str, usize, usize); 3] =
    [("prev_pid", 24, 4), ("prev_state", 32, 8), ("next_pid", 56, 4)];

/// The ids of `sched_switch`, `x86_fpu_regs_activated` and `hrtimer_expire_entry`.
pub(super) fn tracepoints() -> Result<[u64; 3], BpfError> {
    let tracefs = TraceFs::find()?;
    let format = tracefs.read(Path::new("events/sched/sched_switch/format"))?;
    if let Some((field, ..)) = SWITCH_FIELDS.into_iter().find(|field| !has_field(&format, *field)) {
        return Err(BpfError::Record { field });
    }
    let id = |event: &str| {
        let text = tracefs.read(&Path::new("events").join(event).join("id"))?;
        text.trim().parse().map_err(|_| TraceFsError::NotANumber { what: text.trim().to_owned() })
    };
    Ok([id("sched/sched_switch")?, id("x86_fpu/x86_fpu_regs_activated")?, id("timer/hrtimer_expire_entry")?])
}

/// Whether a tracepoint's format says that there is a field of this name, at this offset, of this size. Its lines are as
/// `field:pid_t prev_pid; offset:24; size:4; signed:1;`, with tabs between.
fn has_field(format: &str, (name, offset, size): (&str, usize, usize)) -> bool {
    format.lines().any(|line| {
        let mut parts = line.split(';').map(str::trim);
        let is_this = parts.next().is_some_and(|declaration| {
            declaration.starts_with("field:") && declaration.split_whitespace().next_back() == Some(name)
        });
        is_this
            && parts.next() == Some(&format!("offset:{offset}"))
            && parts.next() == Some(&format!("size:{size}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: sched_switch\nID: 315\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;\n\
        \tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;\n\
        \tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;\n\
        \tfield:pid_t next_pid;\toffset:56;\tsize:4;\tsigned:1;\n\n\
        print fmt: \"prev_pid=%d\", REC->prev_pid\n";

    #[test]
    fn record_is_believed_as_the_kernel_describes_it_and_not_otherwise() {
        for field in SWITCH_FIELDS {
            assert!(has_field(FORMAT, field), "{field:?}");
        }
        let elsewhere = FORMAT.replace("offset:56", "offset:60");
        assert!(!has_field(&elsewhere, ("next_pid", 56, 4)));
        assert!(!has_field(FORMAT, ("prev_state", 32, 4)));
        assert!(!has_field(FORMAT, ("pid", 24, 4)));
        assert!(!has_field("", ("prev_pid", 24, 4)));
    }
}
