//! Two columns, aligned.

use std::fmt;

/// Names and values.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<(&'static str, String)>,
}

impl Table {
    pub(super) fn row(&mut self, name: &'static str, value: String) {
        self.rows.push((name, value));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let right = self.rows.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
        let rule = format!("+-{}-+-{}-+", "-".repeat(left), "-".repeat(right));
        writeln!(f, "{rule}")?;
        for (name, value) in &self.rows {
            writeln!(f, "| {name:<left$} | {value:>right$} |")?;
        }
        writeln!(f, "{rule}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::default();
        table.row("a", "long value".into());
        table.row("longer", "1".into());
        let expected = "+--------+------------+\n| a      | long value |\n| longer |          1 |\n+--------+------------+\n";
        assert_eq!(table.to_string(), expected);
    }
}
