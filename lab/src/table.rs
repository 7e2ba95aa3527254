//! Tables for people: aligned columns and short numbers.
//!
//! Columns of names are aligned to the left, columns of numbers to the right. Tables fit 100
//! columns where their cells allow it; figures that do not fit are in the JSON document.

use std::fmt;

use comfy_table::{CellAlignment, Table as Grid};

/// Spaces between two columns.
const GAP: u16 = 2;

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
        size if size >= 999_500.0 => format!("{}M", significant(value / 1e6)),
        size if size >= 9_995.0 => format!("{}k", significant(value / 1e3)),
        _ => significant(value),
    }
}

/// Formats a count: exactly below 10,000, then like [`figure`].
pub fn count(value: u64) -> String {
    if value < 10_000 { value.to_string() } else { figure(value as f64) }
}

/// Formats a ratio: three decimals, five below 0.01, three significant figures from 10 on.
pub fn ratio(value: f64) -> String {
    match value.abs() {
        size if size < 0.01 => format!("{value:.5}"),
        size if size < 9.9995 => format!("{value:.3}"),
        _ => figure(value),
    }
}

/// Formats a value that may be missing; `-` stands for none.
pub fn or_dash(value: Option<f64>, format: fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), format)
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
    use super::*;

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
    fn ratios_have_three_decimals_small_ones_five_and_large_ones_none() {
        let ratios = [(0.000_264, "0.00026"), (0.978_2, "0.978"), (3.916_7, "3.917"), (3228.011, "3228")];
        for (value, text) in ratios {
            assert_eq!(ratio(value), text);
        }
    }
}
