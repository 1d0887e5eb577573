//! The chart: an SVG with a panel each for rates, processor time and latencies.

use std::error::Error;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::report::{Summary, distinct, find};
use crate::stats::{range, ratio};

const WIDTH: u32 = 1200;
const PANEL_HEIGHT: u32 = 360;
const TITLE_HEIGHT: u32 = 60;
/// The part of the space of a case that its bars fill.
const FILLED: f64 = 0.8;
const REFERENCE: &str = "libzmq";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// A bar from the base line, or from 1, to the value, with a mark above it.
struct Bar<'a> {
    case: &'a str,
    stack: &'a str,
    value: f64,
    mark: Option<f64>,
}

/// Draws the chart. Panels without bars are left out.
pub fn draw(file: &Path, summaries: &[Summary], machine: &str) -> Result<()> {
    let flood: Vec<&Summary> = summaries.iter().filter(|summary| summary.latency.is_none()).collect();
    let multiples = |field: fn(&Summary) -> f64| -> Vec<Bar<'_>> {
        let others = flood.iter().filter(|summary| summary.stack != REFERENCE);
        others
            .filter_map(|s| {
                let value = ratio(field(s), field(find(summaries, &s.case, REFERENCE)?))?;
                (value > 0.0).then_some(Bar { case: &s.case, stack: &s.stack, value, mark: None })
            })
            .collect()
    };
    let latencies: Vec<Bar<'_>> = summaries
        .iter()
        .filter_map(|s| {
            let latency = s.latency.as_ref().filter(|latency| latency.p50 > 0.0)?;
            Some(Bar { case: &s.case, stack: &s.stack, value: latency.p50, mark: Some(latency.p99) })
        })
        .collect();
    let panels = [
        ("Delivered rate, as a multiple of libzmq's (higher is better)", multiples(|s| s.rate), Some(1.0)),
        (
            "Processor time for a message, all processes, as a multiple of libzmq's (lower is better)",
            multiples(|s| s.cpu_us),
            Some(1.0),
        ),
        ("Latency at a fixed rate, µs: p50, line at p99 (lower is better)", latencies, None),
    ];
    let panels: Vec<_> = panels.into_iter().filter(|(_, bars, _)| !bars.is_empty()).collect();
    let height = TITLE_HEIGHT + PANEL_HEIGHT * panels.len() as u32;
    let colors = distinct(summaries.iter().map(|summary| summary.stack.as_str()));
    let result = (|| -> Drawn {
        let root = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, rest) = root.split_vertically(TITLE_HEIGHT);
        title.draw(&Text::new(machine, (20, 12), ("sans-serif", 13).into_font()))?;
        legend(&title, &colors)?;
        for (area, (caption, bars, base)) in rest.split_evenly((panels.len().max(1), 1)).iter().zip(&panels) {
            panel(area, caption, bars, *base, &colors)?;
        }
        Ok(root.present()?)
    })();
    result.map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

fn color(stacks: &[&str], stack: &str) -> RGBColor {
    // Colour-blind people can distinguish these colours (Okabe and Ito). The red one is ours.
    const OTHERS: [RGBColor; 6] = [
        RGBColor(0, 0, 0),
        RGBColor(86, 180, 233),
        RGBColor(0, 158, 115),
        RGBColor(230, 159, 0),
        RGBColor(0, 114, 178),
        RGBColor(150, 150, 150),
    ];
    if stack == "xmsg" {
        return RGBColor(213, 60, 0);
    }
    let place =
        stacks.iter().filter(|other| **other != "xmsg").position(|other| *other == stack).unwrap_or(0);
    OTHERS[place % OTHERS.len()]
}

fn legend(area: &Area<'_>, stacks: &[&str]) -> Drawn {
    let mut left = 20;
    for stack in stacks {
        let square = Rectangle::new([(left, 36), (left + 12, 48)], color(stacks, stack).filled());
        area.draw(&square)?;
        area.draw(&Text::new((*stack).to_owned(), (left + 18, 36), ("sans-serif", 14).into_font()))?;
        left += 120;
    }
    Ok(())
}

/// Draws bars on a logarithmic scale, in groups of one case each. If `base` is set, bars start there instead
/// of at the bottom.
fn panel(area: &Area<'_>, caption: &str, bars: &[Bar<'_>], base: Option<f64>, stacks: &[&str]) -> Drawn {
    let cases = distinct(bars.iter().map(|bar| bar.case));
    let shown = distinct(bars.iter().map(|bar| bar.stack));
    let values = bars.iter().flat_map(|bar| [Some(bar.value), bar.mark].into_iter().flatten()).chain(base);
    let (low, high) = range(values).unwrap_or((1.0, 10.0));
    let (low, high) = (low / 1.5, high * 1.5);

    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(60) // room for the last label, which may be wider than its place
        .caption(caption, ("sans-serif", 16))
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..cases.len() as f64, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|value| if *value < 1.0 { format!("{value:.2}") } else { format!("{value:.0}") })
        .draw()?;

    let width = FILLED / shown.len() as f64;
    for bar in bars {
        let place =
            |list: &[&str], name: &str| list.iter().position(|other| *other == name).unwrap_or(0) as f64;
        let left = place(&cases, bar.case) + (1.0 - FILLED) / 2.0 + place(&shown, bar.stack) * width;
        let (from, style) = (base.unwrap_or(low), color(stacks, bar.stack));
        let corners = [(left, from), (left + width * 0.9, bar.value)];
        chart.draw_series([Rectangle::new(corners, style.filled())])?;
        if let Some(mark) = bar.mark {
            let middle = left + width * 0.45;
            chart.draw_series([PathElement::new(
                [(middle, bar.value), (middle, mark)],
                style.stroke_width(2),
            )])?;
            chart.draw_series([PathElement::new(
                [(left, mark), (left + width * 0.9, mark)],
                style.stroke_width(2),
            )])?;
        }
    }
    if let Some(base) = base {
        chart.draw_series([PathElement::new(
            [(0.0, base), (cases.len() as f64, base)],
            BLACK.stroke_width(1),
        )])?;
    }
    let (_, bottom) = chart.plotting_area().get_pixel_range();
    for (place, case) in cases.iter().enumerate() {
        let (x, _) = chart.backend_coord(&(place as f64 + (1.0 - FILLED) / 2.0, low));
        let (left, top) = area.get_base_pixel();
        area.draw(&Text::new(
            (*case).to_owned(),
            (x - left, bottom.end - top + 8),
            ("sans-serif", 13).into_font(),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Latency, Run};

    #[test]
    fn the_chart_has_a_panel_for_whatever_was_measured() {
        let run = |case: &str, stack: &str, rate: f64| Run {
            case: case.into(),
            stack: stack.into(),
            rate,
            cpu_us: 1e6 / rate,
            latency: case.starts_with("latency").then(|| Latency {
                p50: 10.0,
                p99: 90.0,
                ..Latency::default()
            }),
            ..Run::default()
        };
        let runs = [
            run("100B", "libzmq", 1e6),
            run("100B", "xmsg", 3e6),
            run("latency-1k", "libzmq", 1e3),
            run("latency-1k", "xmsg", 1e3),
        ];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chart.svg");
        draw(&file, &crate::report::summarize(&runs), "a machine").unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg"));
        for wanted in ["Delivered rate", "Processor time", "p99", "latency-1k", "a machine", "libzmq"] {
            assert!(svg.contains(wanted), "{wanted} is missing");
        }
        draw(&file, &[], "nothing").unwrap();
    }
}
