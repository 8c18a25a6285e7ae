//! The results as a figure: plain SVG with a background of its own, light or dark.

use std::fmt::Write as _;

use crate::report::{Load, Report, Row};

pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http.svg");

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 24.0;
/// Where bars begin, and how long the longest is.
const BARS: f64 = 232.0;
const LONGEST: f64 = 440.0;
const BAR: f64 = 13.0;
const GAP: f64 = 11.0;

/// A renderer without style sheets uses the attributes instead.
const STYLE: &str = "\
text { font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; stroke: #30363d } .ink { fill: #e6edf3 } .soft { fill: #9198a1 }
  .ours { fill: #58a6ff } .ours-pale { fill: #2b5a94 }
  .other { fill: #8b949e } .other-pale { fill: #4d5660 }
}";

/// Two panels: the share of axum's throughput that is left, and the CPU per request of each peer.
pub(crate) fn draw(report: &Report) -> String {
    let mut page = Page { body: String::new(), y: MARGIN };
    let load = |keys: bool| report.loads.iter().find(|load| load.pinned && (load.keys > 1) == keys);
    if let Some(one) = load(false) {
        page.throughput(one, load(true));
        page.costs(one);
    }
    page.footnote(report);
    let height = page.y + MARGIN / 2.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"What API keys cost over HTTP\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#ffffff\" \
         stroke=\"#d0d7de\"/>\n{}</svg>\n",
        WIDTH - 1.0,
        height - 1.0,
        page.body,
    )
}

struct Page {
    body: String,
    y: f64,
}

#[derive(Clone, Copy)]
struct Ink {
    class: &'static str,
    fill: &'static str,
}

const INK: Ink = Ink { class: "ink", fill: "#1f2328" };
const SOFT: Ink = Ink { class: "soft", fill: "#59636e" };
const OURS: [Ink; 2] =
    [Ink { class: "ours", fill: "#0969da" }, Ink { class: "ours-pale", fill: "#80b3f0" }];
const OTHER: [Ink; 2] =
    [Ink { class: "other", fill: "#818b98" }, Ink { class: "other-pale", fill: "#c3cad2" }];

fn inks(row: &Row) -> [Ink; 2] {
    if row.name.starts_with("layer") { OURS } else { OTHER }
}

impl Page {
    fn throughput(&mut self, one: &Load, many: Option<&Load>) {
        self.title(
            "Requests per second, as a share of axum alone",
            "one core each for server and load; above: one key, below: 10,000 keys in turn; \
             right: CPU added per request",
        );
        for row in one.servers.iter().filter(|row| !row.is_peer && row.name != "axum") {
            let other = many.and_then(|many| many.row(&row.name));
            let rows = [Some(row), other];
            let bars = rows.into_iter().flatten().zip(inks(row)).map(|(row, ink)| {
                let share = row.share_of_axum;
                let text = format!("{:.0} %   {:+.1} µs", share * 100.0, row.cpu_us_added);
                (share.min(1.1) / 1.1, text, ink)
            });
            self.bars(&row.label, bars);
        }
    }

    fn costs(&mut self, one: &Load) {
        if !one.servers.iter().any(|row| row.is_peer) {
            return;
        }
        self.y += GAP;
        self.title(
            "CPU of the server per request",
            "everything from the socket on, one key, without the database; logarithmic scale",
        );
        let mut rows: Vec<_> = (one.servers.iter())
            .filter(|row| row.is_peer || ["layer", "from_fn-query"].contains(&row.name.as_str()))
            .collect();
        rows.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
        let most = rows.last().map_or(1.0, |row| row.cpu_us);
        for row in rows {
            let length = row.cpu_us.max(1.0).ln() / most.max(2.0).ln();
            let [ink, _] = inks(row);
            self.bars(&row.label, [(length, time(row.cpu_us), ink)]);
        }
    }

    /// Bars under one label, each as a share of the longest.
    fn bars(&mut self, label: &str, bars: impl IntoIterator<Item = (f64, String, Ink)>) {
        let top = self.y;
        for (share, text, Ink { class, fill }) in bars {
            let (length, y) = (share * LONGEST, self.y);
            let _ = writeln!(
                self.body,
                "<rect class=\"{class}\" x=\"{BARS}\" y=\"{y:.1}\" width=\"{length:.1}\" \
                 height=\"{BAR}\" rx=\"2\" fill=\"{fill}\"/>",
            );
            self.text(BARS + length + 8.0, y + BAR - 2.5, 12, INK, "", &text);
            self.y += BAR + 2.0;
        }
        let middle = (top + self.y - 2.0) / 2.0 + 4.5;
        self.text(BARS - 10.0, middle, 13, INK, " text-anchor=\"end\"", label);
        self.y += GAP;
    }

    fn title(&mut self, title: &str, explanation: &str) {
        self.text(MARGIN, self.y + 12.0, 16, INK, " font-weight=\"600\"", title);
        self.text(MARGIN, self.y + 32.0, 12, SOFT, "", explanation);
        self.y += 48.0;
    }

    fn footnote(&mut self, report: &Report) {
        let Report { date, machine, rounds, seconds, connections, .. } = report;
        let text = format!(
            "{date}, {} with {} cores; medians of {rounds} rounds of {seconds} s, in turn, over \
             {connections} connections",
            machine.processor, machine.cores,
        );
        self.text(MARGIN, self.y + 12.0, 12, SOFT, "", &text);
        self.y += 18.0;
    }

    fn text(&mut self, x: f64, y: f64, size: u32, ink: Ink, more: &str, text: &str) {
        let Ink { class, fill } = ink;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\"\
             {more} xml:space=\"preserve\">{text}</text>",
        );
    }
}

fn time(us: f64) -> String {
    match us {
        us if us < 100.0 => format!("{us:.1} µs"),
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 10_000.0 => format!("{:.1} ms", us / 1_000.0),
        us => format!("{:.0} ms", us / 1_000.0),
    }
}
