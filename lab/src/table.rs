//! Tables for people: aligned columns and short numbers.
//!
//! Columns of names are aligned to the left, columns of numbers to the right. Tables fit 100
//! columns where their cells allow it; figures that do not fit are in the JSON document.
//!
//! A value that does not exist is `-`: one that was not measured, and one that is not finite,
//! because it was divided by 0. In JSON both are `null`.

use std::fmt;

use comfy_table::{CellAlignment, Table as Grid};

use host::disturbance::{Disturbance, Verdict};

/// Spaces between two columns.
const GAP: u16 = 2;

/// The legend of the column `taken`, see [`taken`].
pub const TAKEN: &str = "taken: share of CPU time that other tasks and an outer hypervisor took. disturbed: it was too much,\n\
                         also when repeated, and the figures may show it.\n";

/// Stands for a value that does not exist.
const DASH: &str = "-";

/// A table of text without borders.
#[derive(Clone, Debug)]
pub struct Table(Grid);

impl Table {
    /// Creates a table with column headers `header`, of which the first `left` columns hold names.
    pub fn new(header: &[&str], left: usize) -> Self {
        let mut grid = Grid::new();
        grid.load_style(comfy_table::presets::NOTHING).set_header(header.iter().copied());
        for (index, column) in grid.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 0 } else { GAP }, 0));
            column.set_cell_alignment(if index < left { CellAlignment::Left } else { CellAlignment::Right });
        }
        Self(grid)
    }

    /// Adds a row. Missing cells stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells.into_iter().collect::<Vec<_>>());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lines().try_for_each(|line| writeln!(f, "{}", line.trim_end()))
    }
}

/// Formats a number with three significant figures; `k` stands for thousands, `M` for millions.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => DASH.to_owned(),
        size if size >= 999.5e9 => format!("{value:.2e}"),
        size if size >= 999_500.0 => format!("{}M", significant(value / 1e6)),
        size if size >= 9_995.0 => format!("{}k", significant(value / 1e3)),
        _ => significant(value),
    }
}

/// Formats a count: exactly below 10,000, then like [`figure`].
pub fn count(value: u64) -> String {
    if value < 10_000 { value.to_string() } else { figure(value as f64) }
}

/// Formats a count, or `-` if it is unknown.
pub fn count_or_dash(value: Option<u64>) -> String {
    value.map_or_else(|| DASH.to_owned(), count)
}

/// Formats a ratio: three decimals, five below 0.01, three significant figures from 10 on.
pub fn ratio(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => DASH.to_owned(),
        size if size < 0.01 => format!("{value:.5}"),
        size if size < 9.9995 => format!("{value:.3}"),
        _ => figure(value),
    }
}

/// Formats a number with `decimals` decimals, and a large one like [`figure`].
pub fn fixed(value: f64, decimals: usize) -> String {
    if value.abs() < 1e6 { format!("{value:.decimals$}") } else { figure(value) }
}

/// Formats a share in percent, with its unit: one decimal below 10 %.
pub fn percent(share: f64) -> String {
    match 100.0 * share.abs() {
        size if !size.is_finite() => DASH.to_owned(),
        size if size < 0.05 => "0 %".to_owned(),
        size if size < 9.95 => format!("{:.1} %", 100.0 * share),
        _ => format!("{} %", figure(100.0 * share)),
    }
}

/// Formats a value that may be missing.
pub fn or_dash(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| DASH.to_owned(), format)
}

/// Formats the share of all CPU time that others took from a row, with the verdict on its
/// figures, unless that is `known`. `None`: the row was not measured.
pub fn taken(disturbance: Option<Disturbance>) -> String {
    let Some(disturbance) = disturbance else { return DASH.to_owned() };
    let share = percent(disturbance.share());
    match disturbance.verdict() {
        Verdict::Known => share,
        verdict => format!("{share} {verdict}"),
    }
}

fn significant(value: f64) -> String {
    match value.abs() {
        size if size < 0.000_5 => "0".to_owned(),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use host::stats::CpuStats;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["lock", "acq/s"], 1);
        table.row(["mutex".into(), "5".into()]);
        table.row(["tas".into(), "1234567".into()]);
        assert_eq!(table.to_string(), "lock     acq/s\nmutex        5\ntas    1234567\n");
    }

    #[test]
    fn missing_cells_stay_empty() {
        let mut table = Table::new(&["form", "bytes", "ns a call"], 1);
        table.row(["none".into(), String::new(), "0.25".into()]);
        table.row(["save0".into()]);
        assert_eq!(table.to_string(), "form   bytes  ns a call\nnone               0.25\nsave0\n");
    }

    #[test]
    fn figures_have_three_significant_digits() {
        let figures = [(0.0, "0"), (0.954, "0.95"), (12.34, "12.3"), (999.6, "1000"), (9_990.0, "9990")];
        for (value, text) in figures {
            assert_eq!(figure(value), text);
        }
        assert_eq!(figure(553_400.0), "553k");
        assert_eq!(figure(1_234_000.0), "1.23M");
        assert_eq!((count(9_999), count(10_000)), ("9999".to_owned(), "10.0k".to_owned()));
    }

    #[test]
    fn value_that_is_missing_or_not_finite_is_a_dash_and_a_huge_one_is_short() {
        let formats: [fn(f64) -> String; 4] = [figure, ratio, percent, |value| fixed(value, 3)];
        for format in formats {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(format(value), "-");
                assert_eq!(or_dash(Some(value), format), "-");
            }
            assert_eq!(or_dash(None, format), "-");
            for value in [f64::MAX, f64::MIN, f64::MIN_POSITIVE, 0.1 / f64::MIN_POSITIVE, u64::MAX as f64] {
                assert!(format(value).len() <= 10, "{}", format(value));
            }
        }
        assert_eq!(count(u64::MAX), "1.84e19");
    }

    #[test]
    fn taken_time_is_in_percent_of_all_cpus_with_a_verdict_unless_known() {
        let stolen = |ms| {
            let used = CpuStats { stolen: Duration::from_millis(ms), ..CpuStats::default() };
            taken(Some(Disturbance::new(Duration::from_millis(500), 2, Some(used))))
        };
        assert_eq!(
            (stolen(0), stolen(10), stolen(72)),
            ("0 %".into(), "1.0 %".into(), "7.2 % disturbed".into())
        );
        assert_eq!((taken(None), taken(Some(Disturbance::unknown()))), ("-".into(), "- unknown".into()));
    }

    #[test]
    fn ratios_have_three_decimals_small_ones_five_and_large_ones_none() {
        let ratios = [(0.000_264, "0.00026"), (0.978_2, "0.978"), (3.916_7, "3.917"), (3228.011, "3228")];
        for (value, text) in ratios {
            assert_eq!(ratio(value), text);
        }
    }
}
