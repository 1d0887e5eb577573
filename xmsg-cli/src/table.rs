//! Tables on standard output, with one item per line.

use std::io::{self, IsTerminal};
use std::time::Duration;

use xmsg_core::text::escaped;

use crate::exit::Exit;
use crate::output::{Output, counted, note};

/// Writes a table on a terminal, and the number of its rows, counted in `noun`s, on standard error.
/// Elsewhere, writes lines with tabs between the columns.
pub(crate) fn write<const N: usize>(
    columns: [&str; N],
    rows: Vec<[String; N]>,
    noun: &str,
) -> anyhow::Result<Exit> {
    let mut output = Output::stdout()?;
    let on_terminal = io::stdout().is_terminal();
    let count = rows.len() as u64;
    for line in lines(columns, rows, on_terminal) {
        output.buffer().extend_from_slice(line.as_bytes());
        output.buffer().push(b'\n');
        output.written()?;
    }
    output.flush()?;
    if on_terminal {
        note(counted(count, noun));
    }
    Ok(Exit::Done)
}

/// Returns the lines of a table. Text from peers may contain anything, so it is escaped: control characters
/// could harm a terminal, and tabs would break columns.
pub(crate) fn lines<const N: usize>(
    columns: [&str; N],
    rows: Vec<[String; N]>,
    as_table: bool,
) -> Vec<String> {
    let rows: Vec<_> = rows.into_iter().map(|row| row.map(|cell| escaped(&cell).into_owned())).collect();
    if !as_table {
        return rows.iter().map(|row| row.join("\t")).collect();
    }
    let header = columns.map(str::to_owned);
    let all = || std::iter::once(&header).chain(&rows);
    let widths: [usize; N] =
        std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
    all()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

/// Formats a time in seconds with at most two units: `1d 2h`, `3m 20s`, `1.2s`.
pub(crate) fn time(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match whole {
        0..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// Formats a number of bytes in a suitable unit.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = || vec![["publisher", "rock:metal", "plays\x1b[2J"].map(str::to_owned)];
        let columns = ["ROLE", "TOPIC", "DESCRIPTION"];
        assert_eq!(
            lines(columns, rows(), true),
            ["ROLE       TOPIC       DESCRIPTION", "publisher  rock:metal  plays\\u{1b}[2J"]
        );
        assert_eq!(lines(columns, rows(), false), ["publisher\trock:metal\tplays\\u{1b}[2J"]);
    }
}
