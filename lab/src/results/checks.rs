//! What each form of the check costs, as the guest measured it.

use std::sync::atomic::AtomicU64;

use protocol::payload::params::Check;
use protocol::payload::report::{CheckCost, Report};
use serde::Serialize;

use super::statistics::{ratio, read};

/// What a form of the check costs: medians, in ns.
#[derive(Clone, Debug, Serialize)]
pub struct CheckFigures {
    /// The form's word; `none` for what is left without any.
    pub form: &'static str,
    /// A call among others that do not wait for it.
    pub call_ns: f64,
    /// A call whose argument is the answer of the one before.
    pub chain_ns: f64,
    /// A turn of an owner's spinner, compiled alone; 0 for none.
    pub spin_ns: f64,
    /// The same, compiled into a larger function.
    pub folded_ns: f64,
}

impl CheckFigures {
    /// Those of all forms.
    pub(super) fn all(report: &Report, khz: u32) -> Vec<Self> {
        let names = Check::ALL.iter().map(|check| check.name()).chain(["none"]);
        names.zip(&report.header.checks).map(|(form, cost)| Self::new(form, cost, khz)).collect()
    }

    fn new(form: &'static str, cost: &CheckCost, khz: u32) -> Self {
        // Thousandths of a cycle.
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
