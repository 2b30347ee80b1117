//! Tables for people, and the same rows with tabs between for pipes.

use std::io::{self, IsTerminal, Write};

use comfy_table::Table;
use comfy_table::presets::NOTHING;

/// Writes rows under a header to standard output.
///
/// # Errors
/// When standard output is closed.
pub(super) fn print(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let stdout = io::stdout();
    let text = if stdout.is_terminal() { aligned(header, rows) } else { tabbed(header, rows) };
    stdout.lock().write_all(text.as_bytes())
}

fn aligned(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

fn tabbed(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = header.join("\t") + "\n";
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| plain(cell)).collect();
        text += &cells.join("\t");
        text.push('\n');
    }
    text
}

/// What others named must not move the reader's cursor: control characters are shown as they are written in Rust.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() { plain.extend(letter.escape_default()) } else { plain.push(letter) }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_a_pipe_have_tabs_and_nothing_else() {
        let rows = [vec!["a".to_owned(), "b c".to_owned()]];
        assert_eq!(tabbed(&["ONE", "TWO"], &rows), "ONE\tTWO\na\tb c\n");
    }

    #[test]
    fn rows_on_a_terminal_are_aligned() {
        let rows = [vec!["long name".to_owned(), "b".to_owned()], vec!["a".to_owned(), "b".to_owned()]];
        let text = aligned(&["ONE", "TWO"], &rows);
        let columns: Vec<Option<usize>> = text.lines().map(|line| line.find(['b', 'T'])).collect();
        assert_eq!(columns.len(), 3);
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }

    #[test]
    fn control_characters_of_others_are_shown_and_not_obeyed() {
        assert_eq!(plain("a\u{1b}[2J\tb\nä"), "a\\u{1b}[2J\\tb\\nä");
    }
}
