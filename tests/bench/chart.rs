//! A bar chart of the latencies as SVG: a logarithmic axis, p50 as a bar, p99 as a line.

use std::fmt::Write;

use crate::report::Report;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 230.0;
const ROW: f64 = 30.0;
const TOP: f64 = 56.0;
/// The ends of the axis in milliseconds.
const AXIS_MS: (f64, f64) = (0.1, 10_000.0);

/// The peers with one client each, in the order in which they were measured.
pub(crate) fn latency(report: &Report) -> String {
    let rows: Vec<_> = report.series.iter().filter(|series| series.clients == 1).collect();
    let height = TOP + ROW * rows.len() as f64 + 36.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\">Time of one job, from the request to the whole answer (log scale)</text>\n"
    );
    for power in -1..=4 {
        let milliseconds = 10f64.powi(power);
        let x = position(milliseconds);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\" fill=\"#666\">{milliseconds} ms</text>",
            height - 30.0,
            height - 12.0
        );
    }
    for (index, series) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let (p50, p99) = (series.quantile_ms(0.5), series.quantile_ms(0.99));
        let color = if series.name.starts_with("ampoule") { "#1f6f54" } else { "#8a93a3" };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\" fill=\"{color}\"/>\
             <line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{p50:.2}</text>",
            LABELS - 10.0,
            y + 18.0,
            series.name,
            y + 5.0,
            position(p50) - LABELS,
            position(p50),
            y + 13.0,
            position(p99),
            y + 13.0,
            position(p99) + 6.0,
            y + 18.0
        );
    }
    let _ = writeln!(svg, "<text x=\"16\" y=\"44\" fill=\"#666\">bar: p50 in ms; line: up to p99</text>\n</svg>");
    svg
}

fn position(milliseconds: f64) -> f64 {
    let (first, last) = AXIS_MS;
    let share = (milliseconds.clamp(first, last) / first).log10() / (last / first).log10();
    LABELS + share * (WIDTH - LABELS - 60.0)
}
