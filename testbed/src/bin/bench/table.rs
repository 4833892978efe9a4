//! Figures of several rounds, and their medians as a Markdown table.

use serde::Serialize;

/// How a figure is shown.
pub(crate) type Show = fn(f64) -> String;

/// A table: a title, columns, and rows of figures.
#[derive(Serialize)]
pub(crate) struct Table {
    title: String,
    first: String,
    columns: Vec<String>,
    rows: Vec<String>,
    /// By row and column, one figure a round.
    figures: Vec<Vec<Vec<f64>>>,
    #[serde(skip)]
    shown: Vec<Show>,
}

impl Table {
    /// An empty one. Each column has a name and a way to show its figures.
    pub(crate) fn new(title: &str, first: &str, columns: &[(&str, Show)]) -> Self {
        Self {
            title: title.to_owned(),
            first: first.to_owned(),
            columns: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
            rows: Vec::new(),
            figures: Vec::new(),
            shown: columns.iter().map(|(_, show)| *show).collect(),
        }
    }

    /// Adds one round's figure.
    pub(crate) fn add(&mut self, row: &str, column: usize, figure: f64) {
        let row = self.rows.iter().position(|name| name == row).unwrap_or_else(|| {
            self.rows.push(row.to_owned());
            self.figures.push(vec![Vec::new(); self.columns.len()]);
            self.rows.len().saturating_sub(1)
        });
        if let Some(figures) = self.figures.get_mut(row).and_then(|row| row.get_mut(column)) {
            figures.push(figure);
        }
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn cell(&self, row: usize, column: usize) -> String {
        let figures = self.figures.get(row).and_then(|row| row.get(column));
        match figures {
            Some(figures) if !figures.is_empty() => {
                let show = self.shown.get(column).copied().unwrap_or(plain);
                show(median(figures))
            }
            _ => String::new(),
        }
    }

    /// Prints the medians.
    pub(crate) fn print(&self) {
        println!("\n{}\n", self.title);
        println!("| {} | {} |", self.first, self.columns.join(" | "));
        println!("| --- |{}", " ---: |".repeat(self.columns.len()));
        for (row, name) in self.rows.iter().enumerate() {
            let cells: Vec<String> =
                (0..self.columns.len()).map(|column| self.cell(row, column)).collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
}

/// The middle one; of an even number, the lower of the two.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().saturating_sub(1).checked_div(2).unwrap_or(0);
    sorted.get(middle).copied().unwrap_or(f64::NAN)
}

/// Events a second.
pub(crate) fn rate(figure: f64) -> String {
    match figure {
        many if many >= 1e6 => format!("{:.2} M", many / 1e6),
        some if some >= 1e4 => format!("{:.0} k", some / 1e3),
        few => format!("{few:.0}"),
    }
}

/// Two decimals.
pub(crate) fn ratio(figure: f64) -> String {
    format!("{figure:.2}")
}

/// Three decimals.
pub(crate) fn fine(figure: f64) -> String {
    format!("{figure:.3}")
}

fn plain(figure: f64) -> String {
    format!("{figure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_the_same_as_json() {
        let mut table = Table::new("title", "first", &[("one", rate), ("two", ratio)]);
        for (row, column, figure) in [("a", 0, 3.0), ("b", 1, 0.5), ("a", 0, 1.0), ("a", 0, 2.0)] {
            table.add(row, column, figure);
        }
        assert_eq!((table.cell(0, 0), table.cell(0, 1)), ("2".into(), String::new()));
        let json = serde_json::to_value([table]).unwrap();
        let figures = serde_json::json!([[[3.0, 1.0, 2.0], []], [[], [0.5]]]);
        assert_eq!(json[0]["figures"], figures, "{json}");
    }
}
