//! The pen: SVG elements, one style for all pictures, text escaped.
//!
//! Own code rather than `plotters` (light enough with its SVG backend alone): that writes fixed colours into every
//! element, so a picture cannot follow the reader's light or dark mode, it knows neither title nor description, and
//! the forest plot and the probability scale would be own code all the same. Equal input gives equal bytes.
//!
//! A picture brings its own paper: in an `<img>` it follows the system's mode, which need not be the page's.

use std::fmt::Write;

/// How many series can be told apart: by colour, by marker and by dash.
pub const SERIES_MAX: usize = 6;

/// Okabe and Ito's colours, which stay apart under every common colour blindness, darkened for paper and lightened
/// for a dark screen until each has a contrast of 3:1 or more.
const STYLE: &str = "\
.pic{--ink:#1b1d1f;--quiet:#5d646b;--grid:#e3e5e6;--axis:#8a9097;--paper:#fff;--band:#eceeef;\
--s0:#0068a8;--s1:#c4500a;--s2:#007a5a;--s3:#a83f86;--s4:#8a6d00;--s5:#4a5056;\
font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:12.5px;font-variant-numeric:tabular-nums}\
@media (prefers-color-scheme:dark){.pic{--ink:#e9eaeb;--quiet:#a3abb2;--grid:#2c3034;--axis:#6b7279;--paper:#15181a;--band:#24282b;\
--s0:#62b8f0;--s1:#ff9257;--s2:#35c79c;--s3:#ea9bd0;--s4:#e3c84a;--s5:#b6bdc3}}\
.pic text{fill:var(--ink)}.pic .t{font-size:16px;font-weight:600}.pic .q{fill:var(--quiet)}.pic .b{font-weight:600}\
.pic .paper{fill:var(--paper)}.pic .g{stroke:var(--grid)}.pic .x{stroke:var(--axis)}.pic .band{fill:var(--band)}\
.pic .l{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}.pic .thin{stroke-width:1.4}.pic .wide{stroke-width:3;stroke-linecap:round;opacity:.55}\
.pic .a{fill:currentColor;fill-opacity:.14}.pic .m{fill:currentColor;stroke:var(--paper);stroke-width:1}\
.pic .h{fill:var(--paper);stroke:currentColor;stroke-width:2}\
.pic .s0{color:var(--s0)}.pic .s1{color:var(--s1)}.pic .s2{color:var(--s2)}.pic .s3{color:var(--s3)}.pic .s4{color:var(--s4)}.pic .s5{color:var(--s5)}";

const DASHES: [&str; SERIES_MAX] = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A point in the picture's own units, y downwards.
pub type Point = (f64, f64);

pub struct Svg {
    width: f64,
    height: f64,
    title: String,
    description: String,
    body: String,
}

impl Svg {
    pub fn new(width: f64, height: f64, title: &str, description: &str) -> Svg {
        let mut svg = Svg { width, height, title: title.into(), description: description.into(), body: String::new() };
        let _ =
            writeln!(svg.body, r#"<rect class="paper" width="{}" height="{}" rx="8"/>"#, fixed(width), fixed(height));
        svg
    }

    pub fn text(&mut self, (x, y): Point, class: &str, anchor: Anchor, text: &str) {
        self.titled_text((x, y), class, anchor, text, None);
    }

    /// Text cut to `room` with an ellipsis; the whole of it stays readable as a tooltip and to a screen reader.
    pub fn text_within(&mut self, at: Point, class: &str, anchor: Anchor, text: &str, room: f64) {
        let fits = |count: usize| {
            text_width(text.chars().take(count)) + if count < text.chars().count() { 8.0 } else { 0.0 } <= room
        };
        let all = text.chars().count();
        match (0..=all).rev().find(|&count| fits(count)) {
            Some(count) if count == all => self.text(at, class, anchor, text),
            count => {
                let cut: String = text.chars().take(count.unwrap_or(0)).chain(['…']).collect();
                self.titled_text(at, class, anchor, &cut, Some(text));
            }
        }
    }

    fn titled_text(&mut self, (x, y): Point, class: &str, anchor: Anchor, text: &str, whole: Option<&str>) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let whole = whole.map(|whole| format!("<title>{}</title>", escape(whole))).unwrap_or_default();
        let class = if class.is_empty() { String::new() } else { format!(r#" class="{class}""#) };
        let _ = writeln!(
            self.body,
            r#"<text x="{}" y="{}"{class}{anchor}>{whole}{}</text>"#,
            fixed(x),
            fixed(y),
            escape(text)
        );
    }

    pub fn line(&mut self, (x1, y1): Point, (x2, y2): Point, class: &str) {
        let (x1, y1, x2, y2) = (fixed(x1), fixed(y1), fixed(x2), fixed(y2));
        let _ = writeln!(self.body, r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#);
    }

    pub fn rect(&mut self, (x, y): Point, width: f64, height: f64, class: &str) {
        let (x, y, width, height) = (fixed(x), fixed(y), fixed(width), fixed(height));
        let _ = writeln!(self.body, r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#);
    }

    pub fn curve(&mut self, points: &[Point], series: usize) {
        let series = series % SERIES_MAX;
        let dash = DASHES[series];
        let dash = if dash.is_empty() { String::new() } else { format!(r#" stroke-dasharray="{dash}""#) };
        let _ = writeln!(self.body, r#"<polyline class="l s{series}"{dash} points="{}"/>"#, points_list(points));
    }

    pub fn area(&mut self, points: &[Point], series: usize) {
        let _ =
            writeln!(self.body, r#"<polygon class="a s{}" points="{}"/>"#, series % SERIES_MAX, points_list(points));
    }

    /// Bar from `(x, top)` to `(x, bottom)` with caps: a spread.
    pub fn spread(&mut self, x: f64, top: f64, bottom: f64, series: usize) {
        let (from, to, x1, x2) = (fixed(top), fixed(bottom), fixed(x - 3.0), fixed(x + 3.0));
        let (series, x) = (series % SERIES_MAX, fixed(x));
        let _ = writeln!(
            self.body,
            r#"<path class="l thin s{series}" d="M{x1} {from}H{x2}M{x} {from}V{to}M{x1} {to}H{x2}"/>"#
        );
    }

    /// A thick bar from one point to another: an interval.
    pub fn bar(&mut self, (x1, y1): Point, (x2, y2): Point, series: usize) {
        let (series, x1, y1, x2, y2) = (series % SERIES_MAX, fixed(x1), fixed(y1), fixed(x2), fixed(y2));
        let _ = writeln!(self.body, r#"<path class="l wide s{series}" d="M{x1} {y1}L{x2} {y2}"/>"#);
    }

    /// A shape of its own for each series, so that nothing hangs on colour alone.
    pub fn marker(&mut self, (x, y): Point, series: usize) {
        let series = series % SERIES_MAX;
        match series {
            0 => self.circle((x, y), 4.2, "m s0"),
            1 => self.shape(&[(x - 4.0, y - 4.0), (x + 4.0, y - 4.0), (x + 4.0, y + 4.0), (x - 4.0, y + 4.0)], "m s1"),
            2 => self.shape(&[(x, y - 5.2), (x + 5.0, y + 4.0), (x - 5.0, y + 4.0)], "m s2"),
            3 => self.shape(&[(x, y - 5.4), (x + 5.4, y), (x, y + 5.4), (x - 5.4, y)], "m s3"),
            4 => self.shape(&[(x, y + 5.2), (x + 5.0, y - 4.0), (x - 5.0, y - 4.0)], "m s4"),
            _ => self.circle((x, y), 3.6, "h s5"),
        }
    }

    pub fn circle(&mut self, (x, y): Point, radius: f64, class: &str) {
        let (x, y, radius) = (fixed(x), fixed(y), fixed(radius));
        let _ = writeln!(self.body, r#"<circle class="{class}" cx="{x}" cy="{y}" r="{radius}"/>"#);
    }

    pub fn shape(&mut self, points: &[Point], class: &str) {
        let _ = writeln!(self.body, r#"<polygon class="{class}" points="{}"/>"#, points_list(points));
    }

    pub fn finish(self) -> String {
        let Svg { width, height, title, description, body } = self;
        let (width, height) = (fixed(width), fixed(height));
        // `<title>` first names the picture to a screen reader without ids, which could clash inside one HTML page.
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"pic\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <title>{}</title>\n<desc>{}</desc>\n<style>{STYLE}</style>\n{body}</svg>\n",
            escape(&title),
            escape(&description)
        )
    }
}

/// Labels beside each other's height, moved apart until none overlaps: `wanted` heights in, heights out, same order.
pub fn apart(wanted: &[f64], gap: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut placed = wanted.to_vec();
    let mut floor = top;
    for &at in &order {
        placed[at] = placed[at].max(floor);
        floor = placed[at] + gap;
    }
    let mut ceiling = bottom;
    for &at in order.iter().rev() {
        placed[at] = placed[at].min(ceiling);
        ceiling = placed[at] - gap;
    }
    placed
}

/// About how wide text of the pictures' size is. Fonts differ: this errs on the wide side.
pub fn text_width(text: impl IntoIterator<Item = char>) -> f64 {
    let width = |c: char| match c {
        'i' | 'l' | 'j' | '.' | ',' | ':' | '|' | '\'' | ' ' => 3.8,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 11.2,
        'A'..='Z' => 8.6,
        _ => 7.1,
    };
    text.into_iter().map(width).sum()
}

/// For text and for attribute values; what XML cannot hold at all becomes U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn points_list(points: &[Point]) -> String {
    let mut list = String::new();
    for &(x, y) in points {
        let _ = write!(list, "{}{},{}", if list.is_empty() { "" } else { " " }, fixed(x), fixed(y));
    }
    list
}

/// A tenth of a pixel, without a trailing zero.
fn fixed(value: f64) -> String {
    debug_assert!(value.is_finite(), "a coordinate is no number");
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_cut_without_losing_it() {
        assert_eq!(escape("a<b & \"c\"\u{1}"), "a&lt;b &amp; &quot;c&quot;\u{fffd}");
        let mut svg = Svg::new(100.0, 50.0, "a < b", "");
        svg.text_within((0.0, 10.0), "", Anchor::Start, "randread & a very long name", 60.0);
        let text = svg.finish();
        let parsed = roxmltree::Document::parse(&text).expect("the picture is XML");
        let label = parsed.descendants().find(|node| node.has_tag_name("text")).expect("a label");
        assert!(label.text().is_some_and(|text| text.is_empty()) || label.last_child().is_some());
        let shown: String = label.children().filter(|node| node.is_text()).filter_map(|node| node.text()).collect();
        assert!(shown.ends_with('…') && shown.len() < 20, "{shown}");
        let whole = label.children().find(|node| node.has_tag_name("title")).and_then(|node| node.text());
        assert_eq!(whole, Some("randread & a very long name"));
    }

    #[test]
    fn labels_are_moved_apart_inside_their_room() {
        let placed = apart(&[50.0, 52.0, 51.0, 99.0], 15.0, 10.0, 100.0);
        let mut sorted = placed.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= 14.99), "{placed:?}");
        assert!(sorted[0] >= 10.0 && sorted[3] <= 100.0, "{placed:?}");
        assert!(placed[0] < placed[2] && placed[2] < placed[1], "order is kept: {placed:?}");
    }
}
