//! The result as a drawing: deliveries per second over time, and latencies by
//! percentile.

use std::fmt::{Result, Write as _};

use super::{report::Report, stats::real};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const COLOURS: [&str; 8] = [
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2",
];

/// A line to draw: its name and its points, all within 0 to 1.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Draws a report as SVG.
#[must_use]
pub(super) fn svg(report: &Report) -> String {
    let mut out = String::new();
    draw(&mut out, report).ok();
    out
}

fn draw(out: &mut String, report: &Report) -> Result {
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
        2.0 * HEIGHT + 60.0
    )?;
    let (top, lines) = rates(report);
    chart(
        out,
        20.0,
        &format!("delivered per second; the frame's top is {top:.0}"),
        &lines,
    )?;
    let (slowest, lines) = latencies(report);
    let title = format!(
        "latency at p50, p90, p99, p99.9 and the highest; each grid line is 10 times the one below, the top {slowest:.0} ms"
    );
    chart(out, HEIGHT + 40.0, &title, &lines)?;
    writeln!(out, "</svg>")
}

/// Every run over its seconds; the first value is what the frame's top means.
fn rates(report: &Report) -> (f64, Vec<Line>) {
    let runs = || {
        report
            .series
            .iter()
            .flat_map(|s| s.runs.iter().map(move |r| (s, r)))
    };
    let top = runs()
        .flat_map(|(_, r)| r.seconds.iter().copied())
        .max()
        .unwrap_or(0)
        .max(1);
    let longest = runs()
        .map(|(_, r)| r.seconds.len())
        .max()
        .unwrap_or(0)
        .max(2);
    let lines = runs().map(|(s, r)| Line {
        name: format!("{} {}", s.name, s.database),
        points: (0_u32..)
            .zip(&r.seconds)
            .map(|(i, n)| {
                let last = u32::try_from(longest - 1).unwrap_or(u32::MAX);
                (f64::from(i) / f64::from(last), real(*n) / real(top))
            })
            .collect(),
    });
    (real(top), lines.collect())
}

/// Latencies on a logarithmic scale of five decades.
fn latencies(report: &Report) -> (f64, Vec<Line>) {
    let runs = || {
        report
            .series
            .iter()
            .flat_map(|s| s.runs.iter().map(move |r| (s, r)))
    };
    let slowest = runs().map(|(_, r)| r.latency.max_ms).fold(0.001, f64::max);
    let top = slowest.log10().ceil();
    let height = |ms: f64| ((ms.max(1e-9).log10() - top + 5.0) / 5.0).clamp(0.0, 1.0);
    let lines = runs().map(|(s, r)| {
        let l = &r.latency;
        let values = [l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms];
        Line {
            name: format!("{} {}", s.name, s.database),
            points: (0_u8..)
                .zip(values)
                .map(|(i, ms)| (f64::from(i) / 4.0, height(ms)))
                .collect(),
        }
    });
    (10_f64.powf(top), lines.collect())
}

fn chart(out: &mut String, top: f64, title: &str, lines: &[Line]) -> Result {
    let (width, height) = (WIDTH - LEFT - 200.0, HEIGHT - 30.0);
    let base = top + 20.0 + height;
    writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\">{}</text>",
        top + 10.0,
        escaped(title)
    )?;
    for grid in 0..=5_u8 {
        let y = base - height * f64::from(grid) / 5.0;
        writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
            LEFT + width
        )?;
    }
    let mut names: Vec<&str> = Vec::new();
    for line in lines {
        let index = names
            .iter()
            .position(|n| *n == line.name)
            .unwrap_or_else(|| {
                names.push(&line.name);
                names.len() - 1
            });
        let points: Vec<String> = line
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", LEFT + x * width, base - y * height))
            .collect();
        let colour = COLOURS.get(index % COLOURS.len()).unwrap_or(&"black");
        writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            points.join(" ")
        )?;
    }
    for (i, name) in (0_u8..).zip(&names) {
        let y = top + 30.0 + 16.0 * f64::from(i);
        let colour = COLOURS
            .get(usize::from(i) % COLOURS.len())
            .unwrap_or(&"black");
        let x = LEFT + width + 12.0;
        writeln!(
            out,
            "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>",
            escaped(name)
        )?;
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::{Series, tests::sample};

    #[test]
    fn every_run_is_a_line_and_every_series_has_one_name() {
        let report = Report {
            series: vec![Series {
                name: "a<b".into(),
                database: "SQLite".into(),
                runs: vec![sample(1.0), sample(2.0)],
            }],
            ..Report::default()
        };
        let drawing = svg(&report);
        assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
        assert_eq!(drawing.matches("<polyline").count(), 4);
        assert_eq!(drawing.matches("a&lt;b SQLite</text>").count(), 2);
        assert!(
            !drawing.contains("NaN") && !drawing.contains("inf"),
            "{drawing}"
        );
    }

    #[test]
    fn a_report_without_runs_is_an_empty_frame() {
        let drawing = svg(&Report::default());
        assert!(!drawing.contains("<polyline") && !drawing.contains("NaN"));
    }
}
