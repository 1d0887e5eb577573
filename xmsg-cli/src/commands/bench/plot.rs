//! Results as SVG charts, drawn by `plotters`.

use std::ops::Range;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::drawing::IntoDrawingArea;
use plotters::element::{Circle, PathElement};
use plotters::series::LineSeries;
use plotters::style::{Color, IntoFont, RGBColor, TRANSPARENT, WHITE};

use super::histogram::Times;
use super::report::whole;

const SIZE: (u32, u32) = (960, 540);
const FONT: &str = "sans-serif";
const TITLE_SIZE: u32 = 22;
const LABEL_SIZE: u32 = 16;
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// Colours that people with colour vision deficiency can distinguish (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];
/// The number of points of a curve for each factor of ten.
const POINTS_PER_DECADE: f64 = 40.0;

/// A histogram to be drawn.
#[derive(Debug)]
pub(super) struct Curve<'a> {
    pub(super) name: String,
    pub(super) times: &'a Times,
}

/// Points that are joined by a line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Draws the percentiles of times. The x axis gives each further nine of a percentile the same room.
pub(super) fn percentiles(title: &str, what: &str, curves: &[Curve<'_>]) -> anyhow::Result<String> {
    let lines: Vec<Line> = curves.iter().map(percentile_line).collect();
    let most = curves.iter().map(|curve| curve.times.count()).max().unwrap_or(0) as f64;
    let x_ticks: Vec<f64> =
        [1.0, 2.0, 4.0].into_iter().chain((1..=9).map(|nines| 10_f64.powi(nines))).collect();
    let x = 1.0..most.max(10.0);
    let chart = Chart {
        title,
        x_name: "percentile",
        y_name: what,
        markers: false,
        legend: SeriesLabelPosition::UpperLeft,
    };
    let y = log_range(&lines, |point| point.1);
    let y_ticks = log_ticks(&y);
    chart.draw(
        x.log_scale().with_key_points(x_ticks),
        y.log_scale().with_key_points(y_ticks),
        &|x| percentile(*x),
        &|y| tick(*y),
        &lines,
    )
}

/// Draws rates over time.
pub(super) fn over_time(title: &str, what: &str, lines: &[Line]) -> anyhow::Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let seconds = points().map(|point| point.0).fold(0.0, f64::max);
    let most = points().map(|point| point.1).fold(0.0, f64::max);
    let chart = Chart {
        title,
        x_name: "seconds",
        y_name: what,
        markers: false,
        legend: SeriesLabelPosition::LowerLeft,
    };
    let y = 0.0..if most > 0.0 { most * 1.1 } else { 1.0 };
    chart.draw(
        0.0..if seconds > 0.0 { seconds } else { 1.0 },
        y,
        &|x| format!("{}", (x * 1000.0).round() / 1000.0),
        &|y| quantity(*y),
        lines,
    )
}

/// Draws how a time grows with a count.
pub(super) fn times_by_count(title: &str, what: &str, lines: &[Line]) -> anyhow::Result<String> {
    let (x, y) = (log_range(lines, |point| point.0), log_range(lines, |point| point.1));
    let (x_ticks, y_ticks) = (log_ticks(&x), log_ticks(&y));
    let chart =
        Chart { title, x_name: what, y_name: "time", markers: true, legend: SeriesLabelPosition::UpperLeft };
    chart.draw(
        x.log_scale().with_key_points(x_ticks),
        y.log_scale().with_key_points(y_ticks),
        &|x| quantity(*x),
        &|y| tick(*y),
        lines,
    )
}

/// Returns the times at evenly spaced points of the axis, as far as there are enough times.
fn percentile_line(curve: &Curve<'_>) -> Line {
    let times = curve.times;
    let last = (times.count() as f64).max(1.0);
    let steps = whole((last.log10() * POINTS_PER_DECADE).ceil());
    let at = |step| 10_f64.powf(step as f64 / POINTS_PER_DECADE).min(last);
    let seconds = |x: f64| times.at_quantile(1.0 - 1.0 / x).as_secs_f64();
    let points = if times.count() == 0 {
        Vec::new()
    } else {
        (0..=steps).map(at).map(|x| (x, seconds(x).max(1e-9))).collect()
    };
    Line { name: curve.name.clone(), points }
}

/// Formats `x` of the percentile axis, which is 1 / (1 - p), as a percentage.
fn percentile(x: f64) -> String {
    let nines = whole(x.log10()) as usize;
    let digits = if x < 100.0 { 0 } else { nines - 2 };
    format!("{:.digits$} %", 100.0 * (1.0 - 1.0 / x))
}

/// Formats a time: `20 µs`, `1 ms`.
fn tick(seconds: f64) -> String {
    let (value, unit) = match seconds {
        seconds if seconds < 0.999e-6 => (seconds * 1e9, "ns"),
        seconds if seconds < 0.999e-3 => (seconds * 1e6, "µs"),
        seconds if seconds < 0.999 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}

/// Formats a number: `1.5M`, `200k`, `7`.
fn quantity(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e3 => (value / 1e3, "k"),
        value => (value, ""),
    };
    format!("{}{unit}", (value * 100.0).round() / 100.0)
}

/// Returns a range that includes all values. Its ends are 1, 2 or 5 times a power of ten.
fn log_range(lines: &[Line], value: fn(&(f64, f64)) -> f64) -> Range<f64> {
    let values = || lines.iter().flat_map(|line| &line.points).map(value);
    let (min, max) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if min > max {
        return 1e-6..1.0;
    }
    let below = steps(min).rfind(|step| *step <= min * 1.001).unwrap_or(min);
    let above = steps(max).find(|step| *step >= max * 0.999).unwrap_or(max);
    if below < above { below..above } else { below / 2.0..above * 2.0 }
}

/// Returns the values 1, 2, 5, 10, … around a value.
fn steps(value: f64) -> impl DoubleEndedIterator<Item = f64> {
    let decade = value.log10().floor() as i32;
    (decade - 1..=decade + 1).flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(decade)))
}

/// Returns the positions of grid lines and labels. Over many decades, they are at powers of ten only.
fn log_ticks(range: &Range<f64>) -> Vec<f64> {
    let [first, last] = [range.start, range.end].map(|end| end.log10().floor() as i32);
    let all: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let ticks = (first..=last + 1).flat_map(|decade| all.iter().map(move |step| step * 10_f64.powi(decade)));
    ticks.filter(|tick| (range.start * 0.999..=range.end * 1.001).contains(tick)).collect()
}

struct Chart<'a> {
    title: &'a str,
    x_name: &'a str,
    y_name: &'a str,
    /// Whether each point is marked by a dot.
    markers: bool,
    /// The position of the legend, where there are rarely lines.
    legend: SeriesLabelPosition,
}

impl Chart<'_> {
    fn draw<X, Y>(
        &self,
        x: X,
        y: Y,
        x_label: &dyn Fn(&f64) -> String,
        y_label: &dyn Fn(&f64) -> String,
        lines: &[Line],
    ) -> anyhow::Result<String>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            let text = |size: u32| (FONT, size).into_font().color(&INK);
            let mut chart = ChartBuilder::on(&area)
                .caption(self.title, text(TITLE_SIZE))
                .margin(16)
                .margin_right(40)
                .x_label_area_size(48)
                .y_label_area_size(88)
                .build_cartesian_2d(x, y)?;
            chart
                .configure_mesh()
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .axis_style(INK)
                .label_style(text(LABEL_SIZE))
                .axis_desc_style(text(LABEL_SIZE))
                .x_desc(self.x_name)
                .y_desc(self.y_name)
                .x_label_formatter(x_label)
                .y_label_formatter(y_label)
                .draw()?;
            for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
                let style = colour.stroke_width(2);
                chart
                    .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                    .label(&line.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
                if self.markers {
                    let dots = line.points.iter().map(|point| Circle::new(*point, 4, colour.filled()));
                    chart.draw_series(dots)?;
                }
            }
            chart
                .configure_series_labels()
                .position(self.legend.clone())
                .margin(12)
                .legend_area_size(28)
                .background_style(WHITE.mix(0.8))
                .border_style(GRID)
                .label_font(text(LABEL_SIZE))
                .draw()?;
            area.present()?;
        }
        Ok(svg)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn percentiles_have_their_nines() {
        for (x, text) in [
            (1.0, "0 %"),
            (2.0, "50 %"),
            (4.0, "75 %"),
            (10.0, "90 %"),
            (100.0, "99 %"),
            (1000.0, "99.9 %"),
            (1e5, "99.999 %"),
        ] {
            assert_eq!(percentile(x), text);
        }
    }

    #[test]
    fn quantities_are_short() {
        for (seconds, text) in
            [(2e-9, "2 ns"), (1e-6, "1 µs"), (5e-4, "500 µs"), (1e-3, "1 ms"), (20.0, "20 s")]
        {
            assert_eq!(tick(seconds), text);
        }
        for (value, text) in [(0.0, "0"), (7.0, "7"), (1500.0, "1.5k"), (2e5, "200k"), (1.25e6, "1.25M")] {
            assert_eq!(quantity(value), text);
        }
    }

    #[test]
    fn axes_hold_all_points_and_have_ticks() {
        let line = |points: &[(f64, f64)]| [Line { name: String::new(), points: points.to_vec() }];
        for points in
            [&[(1.0, 1e-4), (2.0, 3e-2)][..], &[(1.0, 5e-6)], &[(1.0, 1e-3)], &[(1.0, 1e-9), (1.0, 1e3)]]
        {
            let range = log_range(&line(points), |point| point.1);
            assert!(points.iter().all(|point| point.1 >= range.start * 0.99 && point.1 <= range.end * 1.01));
            assert!(
                (2..15).contains(&log_ticks(&range).len()),
                "{points:?}: {range:?} {:?}",
                log_ticks(&range)
            );
        }
        assert!(!log_ticks(&log_range(&[], |point| point.1)).is_empty());
    }

    #[test]
    fn a_curve_ends_with_the_last_percentile_that_is_known() {
        let mut times = Times::fine();
        (1..=1000).for_each(|us| times.record(Duration::from_micros(us)));
        let line = percentile_line(&Curve { name: "a".to_owned(), times: &times });
        assert!((line.points[0].0 - 1.0).abs() < 1e-9 && line.points[0].1 < 2e-6);
        let last = line.points.last().unwrap();
        assert!((last.0 - 1000.0).abs() < 1e-6 && (last.1 - 999e-6).abs() < 3e-6, "{last:?}");
        assert!(line.points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
    }

    #[test]
    fn pictures_name_what_they_show() {
        let mut times = Times::fine();
        (1..=1000).for_each(|us| times.record(Duration::from_micros(us)));
        let curves = [Curve { name: "a < b".to_owned(), times: &times }];
        let svg = percentiles("The title", "latency", &curves).unwrap();
        for text in ["<svg", "The title", "a &lt; b", "99.9 %", "latency", "polyline", "</svg>"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        let line = |points: &[(f64, f64)]| [Line { name: "rate".to_owned(), points: points.to_vec() }];
        let over_time = over_time("Rates", "messages", &line(&[(1.0, 1e6), (2.0, 1.5e6)])).unwrap();
        assert!(over_time.contains("rate") && over_time.contains("1M"), "{over_time}");
        let by_count = times_by_count("Growth", "things", &line(&[(1e3, 0.1), (1e6, 10.0)])).unwrap();
        assert!(by_count.contains("circle") && by_count.contains("100k"), "{by_count}");
    }

    #[test]
    fn nothing_measured_is_no_failure() {
        for empty in [Vec::new(), vec![(1.0, 0.0)]] {
            over_time("a", "b", &[Line { name: String::new(), points: empty }]).unwrap();
        }
        percentiles("a", "b", &[]).unwrap();
        percentiles("a", "b", &[Curve { name: String::new(), times: &Times::fine() }]).unwrap();
        times_by_count("a", "b", &[]).unwrap();
        times_by_count("a", "b", &[Line { name: String::new(), points: vec![(1000.0, 0.5)] }]).unwrap();
    }
}
