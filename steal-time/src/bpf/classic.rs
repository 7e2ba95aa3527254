//! The tracepoints of the classic program, as tracefs describes them.
//!
//! The classic program reads a tracepoint's record at fixed offsets. The loader compares them with
//! the format that the running kernel reports, and refuses a kernel that differs.

use super::error::BpfError;
use host::tracefs::{TraceFs, TraceFsError};

/// A field of a tracepoint's record.
#[derive(Clone, Copy, Debug)]
struct Field {
    name: &'static str,
    /// Offset in the record (bytes).
    offset: usize,
    /// Size (bytes).
    size: usize,
}

/// The fields of `sched_switch` that the classic program reads (`struct sched_switch` there).
const SWITCH_FIELDS: [Field; 3] = [
    Field { name: "prev_pid", offset: 24, size: 4 },
    Field { name: "prev_state", offset: 32, size: 8 },
    Field { name: "next_pid", offset: 56, size: 4 },
];

/// Returns the IDs of `sched_switch`, `x86_fpu_regs_activated` and `hrtimer_expire_entry`.
pub(super) fn tracepoints() -> Result<[u64; 3], BpfError> {
    let (format, ids) = read_tracefs().map_err(BpfError::no_tracefs)?;
    match SWITCH_FIELDS.into_iter().find(|field| !has_field(&format, *field)) {
        Some(field) => Err(BpfError::tracepoint_format(field.name)),
        None => Ok(ids),
    }
}

fn read_tracefs() -> Result<(String, [u64; 3]), TraceFsError> {
    let tracefs = TraceFs::find()?;
    let ids = [
        tracefs.id("sched/sched_switch")?,
        tracefs.id("x86_fpu/x86_fpu_regs_activated")?,
        tracefs.id("timer/hrtimer_expire_entry")?,
    ];
    Ok((tracefs.format("sched/sched_switch")?, ids))
}

/// Whether a tracepoint's format has this field, at this offset and of this size.
///
/// A line reads `field:pid_t prev_pid; offset:24; size:4; signed:1;`, with tabs between.
fn has_field(format: &str, Field { name, offset, size }: Field) -> bool {
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
    fn record_is_accepted_only_as_the_kernel_describes_it() {
        for field in SWITCH_FIELDS {
            assert!(has_field(FORMAT, field), "{field:?}");
        }
        let elsewhere = FORMAT.replace("offset:56", "offset:60");
        assert!(!has_field(&elsewhere, Field { name: "next_pid", offset: 56, size: 4 }));
        assert!(!has_field(FORMAT, Field { name: "prev_state", offset: 32, size: 4 }));
        assert!(!has_field(FORMAT, Field { name: "pid", offset: 24, size: 4 }));
        assert!(!has_field("", Field { name: "prev_pid", offset: 24, size: 4 }));
    }
}
