//! Metrics as classic text of Prometheus, for whoever asks for that. [`metrics`](super::metrics) writes
//! `OpenMetrics`; this module reads from the request which format is wanted, and translates.

/// A format that metrics are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextFormat {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4: all that some
    /// collectors read.
    Classic,
}

impl TextFormat {
    /// Returns the format that this `Accept` header prefers. The default is `OpenMetrics`.
    pub(super) fn wanted(accept: &str) -> Self {
        let open_metrics = quality(accept, ["application", "openmetrics-text"], &["1.0.0", "0.0.1"]);
        let classic = quality(accept, ["text", "plain"], &["0.0.4"]);
        if classic > open_metrics { Self::Classic } else { Self::OpenMetrics }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts metrics, which are written as `OpenMetrics`, to this format.
    pub(super) fn write(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Classic => classic(&text),
        }
    }
}

/// Returns how much a media type is wanted, from 0 to 1. The most specific range of the header counts (RFC
/// 9110, section 12.5.1).
fn quality(accept: &str, [kind, subtype]: [&str; 2], versions: &[&str]) -> f32 {
    let ranges = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) = parts.next()?.split_once('/')?;
        let specificity = match (range_kind, range_subtype) {
            ("*", "*") => 0,
            (found, "*") if found.eq_ignore_ascii_case(kind) => 1,
            (found, name) if found.eq_ignore_ascii_case(kind) && name.eq_ignore_ascii_case(subtype) => 2,
            _ => return None,
        };
        let (mut quality, mut version) = (1.0, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse::<f32>().ok()?.clamp(0.0, 1.0),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        if version.is_some_and(|version| !versions.contains(&version)) {
            return None;
        }
        Some((specificity, quality))
    });
    // Of the same type in several versions, the one that is wanted most.
    let best = ranges.max_by(|(a, wanted), (b, more)| a.cmp(b).then(wanted.total_cmp(more)));
    best.map_or(0.0, |(_, quality)| quality)
}

/// Converts `OpenMetrics` to classic text. In that, the type of a counter is that of its samples, which end
/// in `_total`, and there is no `info`, no unit, and no end.
fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The help of a family comes before its type, which says what it is called.
    let mut help = "";
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            kind => ("", kind),
        };
        if !help.is_empty() {
            out.extend(["# HELP ", name, suffix, " ", help, "\n"]);
        }
        out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        help = "";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_chooses_the_format() {
        for accept in [
            "",
            "*/*",
            "application/openmetrics-text",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            // Prometheus 2.
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
            "text/plain;q=0.5, application/openmetrics-text; version=1.0.0",
            "text/plain;version=1.0.0",
        ] {
            assert_eq!(TextFormat::wanted(accept), TextFormat::OpenMetrics, "{accept}");
        }
        for accept in [
            "text/plain",
            "TEXT/Plain; Version=0.0.4",
            "text/plain;version=\"0.0.4\";q=1,*/*;q=0.1",
            "text/*, */*;q=0.5",
            "application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.3",
        ] {
            assert_eq!(TextFormat::wanted(accept), TextFormat::Classic, "{accept}");
        }
    }

    #[test]
    fn open_metrics_are_written_as_classic_text() {
        let open = "# HELP a_b What it is.\n# TYPE a_b counter\n# UNIT a_b bytes\na_b_total{x=\"1 # EOF\"} 3\n# HELP i The program.\n\
                    # TYPE i info\ni_info{v=\"1\"} 1\n# TYPE g gauge\ng 2\n# EOF\n";
        let classic = "# HELP a_b_total What it is.\n# TYPE a_b_total counter\na_b_total{x=\"1 # EOF\"} 3\n# HELP i_info The program.\n\
                       # TYPE i_info gauge\ni_info{v=\"1\"} 1\n# TYPE g gauge\ng 2\n";
        assert_eq!(TextFormat::Classic.write(open.to_owned()), classic);
        assert_eq!(TextFormat::OpenMetrics.write(open.to_owned()), open);
    }
}
