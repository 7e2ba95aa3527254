//! Tables for people: aligned columns, the first one to the left, numbers to the right.

use std::fmt::{self, Write as _};

/// A table of text.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Table {
    /// A table with these column heads, of which the first `left` are aligned to the left.
    pub fn new(header: &[&str], left: usize) -> Self {
        Self { header: header.iter().map(ToString::to_string).collect(), rows: Vec::new(), left }
    }

    /// Adds a row. Cells that are missing are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
        let width = |(column, head): (usize, &String)| {
            self.rows.iter().map(|row| cell(row, column)).chain([head.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = self.header.iter().enumerate().map(width).collect();
        for row in [&self.header].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let separator = if column == 0 { "" } else { "  " };
                if column < self.left {
                    write!(line, "{separator}{cell:<width$}")?;
                } else {
                    write!(line, "{separator}{cell:>width$}")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with three significant figures, and thousands as `k`, millions as `M`.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 999_500.0 => format!("{}M", significant(value / 1e6)),
        size if size >= 9_995.0 => format!("{}k", significant(value / 1e3)),
        _ => significant(value),
    }
}

/// A count: to the letter as long as it is short, then as [`figure`].
pub fn count(value: u64) -> String {
    if value < 10_000 { value.to_string() } else { figure(value as f64) }
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
    fn figures_have_three_significant_digits() {
        let figures = [(0.0, "0"), (0.954, "0.95"), (12.34, "12.3"), (999.6, "1000"), (9_990.0, "9990")];
        for (value, text) in figures {
            assert_eq!(figure(value), text);
        }
        assert_eq!(figure(553_400.0), "553k");
        assert_eq!(figure(1_234_000.0), "1.23M");
        assert_eq!((count(9_999), count(10_000)), ("9999".to_owned(), "10.0k".to_owned()));
    }
}
