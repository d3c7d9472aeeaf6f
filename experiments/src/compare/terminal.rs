//! Tables and paragraphs for a terminal of a given width.

use comfy_table::{ContentArrangement, Table as Grid, presets};

/// A grid for a terminal of `width` columns, in the widest layout that fits; else in several parts one below the other, each
/// with the first column. `grid` gets what separates the parts of a cell: a space, or a line end, so that five data sets
/// fit 80 columns. A cell breaks only there, unless it alone is too wide.
pub(super) fn fitted(grid: impl Fn(char) -> Vec<Vec<String>>, width: Option<u16>) -> String {
    let wide = terminal_grid(&grid(' '));
    let Some(width) = width.filter(|width| !fits(&wide, *width)) else {
        return wide + "\n";
    };
    let narrow = grid('\n');
    let text = terminal_grid(&narrow);
    if fits(&text, width) {
        return text + "\n";
    }
    let columns = narrow.first().map_or(0, Vec::len);
    let mut page = String::new();
    let mut first = 1;
    while first < columns {
        let parts = (first + 1..=columns).map(|end| {
            let part = |line: &Vec<String>| [&line[..1], &line[first..end]].concat();
            let grid: Vec<Vec<String>> = narrow.iter().map(part).collect();
            (end, grid)
        });
        let last = parts
            .take_while(|(end, grid)| *end == first + 1 || fits(&terminal_grid(grid), width))
            .last();
        let Some((end, grid)) = last else { break };
        let mut text = terminal_grid(&grid);
        if !fits(&text, width) {
            let mut table = terminal_table(&grid);
            table
                .set_width(width)
                .set_content_arrangement(ContentArrangement::Dynamic);
            text = table.trim_fmt();
        }
        page += &(text + "\n");
        first = end;
    }
    page
}

fn fits(text: &str, width: u16) -> bool {
    text.lines()
        .all(|line| line.chars().count() <= usize::from(width))
}

fn terminal_grid(grid: &[Vec<String>]) -> String {
    terminal_table(grid).trim_fmt()
}

fn terminal_table(grid: &[Vec<String>]) -> Grid {
    let mut table = filled(grid);
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table
}

/// A paragraph in lines of at most `width` characters, broken between words.
pub(super) fn wrapped(text: &str, width: Option<u16>) -> String {
    let Some(width) = width else {
        return text.into();
    };
    let mut lines = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > usize::from(width) {
            lines.push('\n');
            used = 0;
        }
        if used > 0 {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += length;
    }
    lines
}

/// A grid with its header.
pub(super) fn filled(grid: &[Vec<String>]) -> Grid {
    let mut table = Grid::new();
    if let Some((header, lines)) = grid.split_first() {
        table.set_header(header).add_rows(lines);
    }
    table
}
