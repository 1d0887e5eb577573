//! Plots of figures over counts as SVG, with two logarithmic axes.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::drawing::IntoDrawingArea;
use plotters::element::{Circle, PathElement};
use plotters::series::LineSeries;
use plotters::style::{Color, RGBColor, TRANSPARENT, WHITE};

const SIZE: (u32, u32) = (960, 540);
const TITLE: (&str, u32) = ("sans-serif", 22);
const LABEL: (&str, u32) = ("sans-serif", 16);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// Colours that colour-blind people can distinguish (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0x00, 0x00, 0x00),
];

/// Points that are joined by a line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws lines over counts. The second axis begins just below the smallest value and ends just above the
/// largest, each at 1, 2 or 5 times a power of ten.
pub(crate) fn draw(file: &Path, title: &str, axes: [&str; 2], lines: &[Line]) -> Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let (x, y) = (range(points().map(|point| point.0)), range(points().map(|point| point.1)));
    let (x_ticks, y_ticks) = (ticks(&x), ticks(&y));
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, TITLE)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(x.log_scale().with_key_points(x_ticks), y.log_scale().with_key_points(y_ticks))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .label_style(LABEL)
        .x_desc(axes[0])
        .y_desc(axes[1])
        .x_label_formatter(&|x| quantity(*x))
        .y_label_formatter(&|y| quantity(*y))
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(&line.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
        chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(LABEL)
            .background_style(WHITE.mix(0.8))
            .border_style(GRID)
            .draw()?;
    }
    area.present()?;
    Ok(())
}

/// Returns a range from a step at or below the smallest value to a step at or above the largest. Steps are 1,
/// 2 and 5 times powers of ten.
fn range(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let (min, max) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
    let steps = |value: f64| {
        let decade = value.log10().floor() as i32;
        (decade - 1..=decade + 1).flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(decade)))
    };
    let below = steps(min).rfind(|step| *step <= min * 1.001).unwrap_or(min);
    let above = steps(max).find(|step| *step >= max * 0.999).unwrap_or(max);
    if below < above { below..above } else { below / 2.0..above * 2.0 }
}

/// Returns the positions of grid lines and labels. Over many decades, only powers of ten have them.
fn ticks(range: &Range<f64>) -> Vec<f64> {
    let [first, last] = [range.start, range.end].map(|end| end.log10().floor() as i32);
    let all: &[f64] = if last - first > 2 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let ticks = (first..=last + 1).flat_map(|decade| all.iter().map(move |step| step * 10_f64.powi(decade)));
    ticks.filter(|tick| (range.start * 0.999..=range.end * 1.001).contains(tick)).collect()
}

/// Formats a number such as `1.5M`, `200k` or `7`.
fn quantity(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e3 => (value / 1e3, "k"),
        value => (value, ""),
    };
    format!("{}{unit}", (value * 100.0).round() / 100.0)
}
