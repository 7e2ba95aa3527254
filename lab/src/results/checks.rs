//! The cost of each form of the check, as the guest measured it.

use std::sync::atomic::AtomicU64;

use protocol::payload::params::Check;
use protocol::payload::report::{CheckCost, Report};
use serde::Serialize;

use super::statistics::{ratio, read};

/// The cost of a form of the check: medians, in ns.
#[derive(Clone, Debug, Serialize)]
pub struct CheckFigures {
    /// Name of the form; `none` for the empty loop.
    pub form: &'static str,
    /// A call that does not depend on the one before.
    pub call_ns: f64,
    /// A call whose argument is the result of the one before.
    pub chain_ns: f64,
    /// A turn of a waiting loop that is compiled alone; 0 for `none`.
    pub spin_ns: f64,
    /// A turn of the same loop, compiled into a larger function; 0 for `none`.
    pub folded_ns: f64,
}

impl CheckFigures {
    /// The costs of all forms, in the order of [`Check::ALL`], and of none.
    pub(super) fn all(report: &Report, khz: u32) -> Vec<Self> {
        let names = Check::ALL.iter().map(|check| check.name()).chain(["none"]);
        names.zip(&report.header.checks).map(|(form, cost)| Self::new(form, cost, khz)).collect()
    }

    fn new(form: &'static str, cost: &CheckCost, khz: u32) -> Self {
        // The guest reports thousandths of a cycle.
        let ns = |figure: &AtomicU64| ratio(read(figure) as f64 * 1e3, f64::from(khz));
        Self {
            form,
            call_ns: ns(&cost.call),
            chain_ns: ns(&cost.chain),
            spin_ns: ns(&cost.spin),
            folded_ns: ns(&cost.folded),
        }
    }
}
