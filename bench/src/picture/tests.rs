//! The pictures are XML, and what they draw lies where it should; how they look is judged by eye.

use std::collections::BTreeMap;

use roxmltree::{Document, Node};

use super::*;
use crate::compare::result::{Case, Machine, Ratio, Run, Side, Verdict};

const EVIL: &str = "a<b> & \"c\" </script> 'd'";

fn machine() -> Machine {
    Machine {
        cpus: 2,
        cpu_model: EVIL.into(),
        memory_bytes: 24 << 30,
        kernel: "6.18".into(),
        filesystem: "ext4".into(),
        device: "/dev/vda".into(),
        congestion_control: "reno".into(),
        load_before: 0.1,
        load_after: 1.9,
        date: "2026-01-02T03:04:05Z".into(),
        versions: BTreeMap::from([("fio".into(), "3.33".into())]),
    }
}

/// Latencies from `fastest` up, each next operation a little slower: every curve has its tail.
fn run(fastest: f64, bins: usize) -> Run {
    let cdf: Vec<(u64, f64)> = (1..=bins)
        .map(|at| {
            let left = 1.0 - at as f64 / bins as f64;
            ((fastest * (1.0 + 0.3 * -(left.max(1e-6)).ln())) as u64, 1.0 - left)
        })
        .collect();
    let clat_ns = Some([0.5, 0.99].map(|q| (q, (fastest * (1.0 - 0.3 * f64::ln(1.0 - q))) as u64)).to_vec());
    Run {
        seconds: 1.0,
        bytes: 400 << 20,
        operations: 102_400,
        cpu_seconds: 0.9,
        context_switches: 9_000,
        peak_rss_bytes: 12 << 20,
        clat_ns,
        cdf: Some(cdf),
        client_cpu_seconds: None,
        disk_busy: None,
    }
}

fn side(name: &str, fastest: f64, bins: usize) -> Side {
    let runs = (0..4).map(|round| run(fastest * (1.0 + 0.02 * f64::from(round)), bins)).collect();
    Side { name: name.into(), version: "3.33".into(), runs }
}

fn ratio(median: f64, verdict: Verdict) -> Ratio {
    Ratio { median, low: median * 0.94, high: median * 1.05, confidence: 0.95, verdict }
}

fn case(name: &str, speed: Ratio, bins: usize) -> Case {
    Case {
        name: name.into(),
        ours: side("reelring bridge", 145_000.0, bins),
        theirs: side("fio io_uring", 98_000.0, bins),
        same_work: "102,400 reads of 4 KiB on each side".into(),
        speed,
        cpu: Some(ratio(1.2, Verdict::Loss)),
        p99: None,
    }
}

fn sweep() -> Sweep {
    let series = |name: &str, scale: f64| Series {
        name: name.into(),
        points: [4096, 16384, 65536, 1 << 20]
            .map(|at: u64| Spot {
                at,
                rounds: [0.9, 1.0, 1.1].map(|noise| scale * noise * (at as f64).sqrt() * 1e6).to_vec(),
            })
            .to_vec(),
    };
    Sweep {
        id: "blocks".into(),
        title: "Random reads by block size".into(),
        command: "reelring-bench run …".into(),
        along: Axis::BlockBytes,
        of: Measure::BytesPerSecond,
        series: vec![
            series("reelring bridge", 1.0),
            series("reelring raw", 1.3),
            series("threads", 0.5),
            series("fio", 1.31),
        ],
    }
}

fn findings() -> Findings {
    let cases = vec![
        case("randread-4k-qd64", ratio(0.65, Verdict::Loss), 200),
        case("read-128k-qd32", ratio(1.0, Verdict::NoDifference), 200),
        case(EVIL, ratio(30.0, Verdict::Win), 200),
    ];
    let section = Section {
        id: "fio".into(),
        title: format!("Beside fio {EVIL}"),
        command: "compare fio".into(),
        notes: vec![EVIL.into()],
        cases,
    };
    let table = Table {
        id: "store".into(),
        title: "Whole objects".into(),
        command: "store".into(),
        notes: vec![],
        heads: vec!["what".into(), EVIL.into()],
        rows: vec![vec!["put".into(), "300".into()]],
    };
    let missing = vec![Missing { title: "nginx".into(), reason: "nginx is not installed".into() }];
    let check = Section {
        id: "self".into(),
        title: "This machine".into(),
        command: "compare self".into(),
        notes: vec![],
        cases: vec![case("self", ratio(1.0, Verdict::NoDifference), 200)],
    };
    Findings {
        report: Report { machine: machine(), sections: vec![check, section] },
        sweeps: vec![sweep()],
        tables: vec![table],
        missing,
    }
}

fn all_pictures(findings: &Findings) -> Vec<Picture> {
    let mut all = overview(findings);
    all.extend(sweeps(findings));
    all.extend(findings.report.sections.iter().flat_map(latencies));
    all
}

fn number(node: Node, name: &str) -> f64 {
    node.attribute(name).and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

fn points(node: Node) -> Vec<(f64, f64)> {
    let pair = |pair: &str| pair.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap();
    node.attribute("points").unwrap_or("").split_whitespace().map(pair).collect()
}

#[test]
fn every_picture_is_xml_inside_its_view_with_a_title_and_a_description() {
    let pictures = all_pictures(&findings());
    assert_eq!(pictures.len(), 2 + 1 + 4);
    for picture in pictures {
        let document =
            Document::parse(&picture.svg).unwrap_or_else(|error| panic!("{}: {error}\n{}", picture.name, picture.svg));
        let root = document.root_element();
        assert_eq!(
            (root.attribute("role"), root.first_element_child().map(|node| node.tag_name().name())),
            (Some("img"), Some("title"))
        );
        assert!(
            root.children().any(|node| node.has_tag_name("desc") && node.text().is_some_and(|text| !text.is_empty()))
        );
        let (width, height) = (number(root, "width"), number(root, "height"));
        let inside = |x: f64, y: f64| (0.0..=width).contains(&x) && (0.0..=height).contains(&y);
        for node in document.descendants().filter(|node| node.is_element()) {
            let at = match node.tag_name().name() {
                "text" | "rect" if node.attribute("x").is_some() => vec![(number(node, "x"), number(node, "y"))],
                "circle" => vec![(number(node, "cx"), number(node, "cy"))],
                "line" => vec![(number(node, "x1"), number(node, "y1")), (number(node, "x2"), number(node, "y2"))],
                "polyline" | "polygon" => points(node),
                _ => vec![],
            };
            assert!(
                at.iter().all(|&(x, y)| inside(x, y)),
                "{}: {:?} of {} lies outside",
                picture.name,
                at,
                node.tag_name().name()
            );
        }
    }
}

#[test]
fn texts_do_not_lie_on_each_other() {
    for picture in all_pictures(&findings()) {
        let document = Document::parse(&picture.svg).unwrap();
        let mut boxes: Vec<(f64, f64, f64, String)> = Vec::new();
        for node in document.descendants().filter(|node| node.has_tag_name("text")) {
            let shown: String = node.children().filter(Node::is_text).filter_map(|node| node.text()).collect();
            // The width is estimated on the wide side; a tenth less is what a font takes.
            let width = svg::text_width(shown.chars()) * 0.88;
            let left = match node.attribute("text-anchor") {
                Some("middle") => number(node, "x") - width / 2.0,
                Some("end") => number(node, "x") - width,
                _ => number(node, "x"),
            };
            let y = number(node, "y");
            let clash = boxes.iter().find(|(l, r, at, _)| (at - y).abs() < 11.0 && left < *r && *l < left + width);
            assert!(clash.is_none(), "{}: {shown:?} lies on {:?}", picture.name, clash.map(|clash| &clash.3));
            boxes.push((left, left + width, y, shown));
        }
    }
}

#[test]
fn a_distribution_rises_and_the_slower_side_lies_right() {
    let case = case("randread", ratio(0.65, Verdict::Loss), 800);
    let text = cdf::picture("randread", &case).unwrap();
    let document = Document::parse(&text).unwrap();
    let curves: Vec<Vec<(f64, f64)>> = document
        .descendants()
        .filter(|node| node.has_tag_name("polyline"))
        .map(points)
        .filter(|points| points.len() > 2)
        .collect();
    assert_eq!(curves.len(), 2);
    for curve in &curves {
        assert!(curve.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1), "{curve:?}");
    }
    let middle = |curve: &[(f64, f64)]| curve[curve.len() / 2].0;
    assert!(middle(&curves[0]) > middle(&curves[1]), "ours is slower here");
    for label in
        ["50 %", "99 %", "99.9 %", "reelring bridge", "fio io_uring", "completion latency, logarithmic", "200 µs"]
    {
        assert!(
            document.descendants().any(|node| node.is_text() && node.text() == Some(label)),
            "no {label:?} in {text}"
        );
    }
}

#[test]
fn a_side_without_distributions_has_no_picture() {
    let mut case = case("randread", ratio(1.0, Verdict::NoDifference), 10);
    case.theirs.runs.iter_mut().for_each(|run| run.cdf = None);
    assert!(cdf::picture("randread", &case).is_none());
    case.theirs.runs.clear();
    assert!(cdf::picture("randread", &case).is_none());
}

#[test]
fn a_sweep_has_a_line_and_a_name_for_each_engine() {
    let sweep = sweep();
    let text = lines::picture(&sweep).unwrap();
    let document = Document::parse(&text).unwrap();
    let lines: Vec<_> = document.descendants().filter(|node| node.has_tag_name("polyline")).map(points).collect();
    assert_eq!(lines.len(), sweep.series.len());
    assert!(
        lines
            .iter()
            .all(|line| line.len() == 4 && line.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1))
    );
    for label in ["reelring bridge", "fio", "4 KiB", "1 MiB", "block size"] {
        assert!(document.descendants().any(|node| node.is_text() && node.text() == Some(label)), "no {label:?}");
    }
    assert!(lines::picture(&Sweep { series: vec![], ..sweep }).is_none());
}

#[test]
fn the_verdict_is_a_shape_and_a_word() {
    let findings = findings();
    let speed = &overview(&findings)[0];
    let document = Document::parse(&speed.svg).unwrap();
    let words = |word: &str| document.descendants().filter(|node| node.is_text() && node.text() == Some(word)).count();
    // Once in its row and once in the legend.
    assert_eq!([words("win"), words("loss"), words("no difference")], [2, 2, 2]);
    let centre = |node: Node| points(node).iter().map(|point| point.0).sum::<f64>() / points(node).len() as f64;
    let one =
        document.descendants().find(|node| node.has_tag_name("line") && node.attribute("class") == Some("x")).unwrap();
    let triangles: Vec<Node> =
        document.descendants().filter(|node| node.has_tag_name("polygon") && points(*node).len() == 3).collect();
    let of = |class: &str| {
        triangles
            .iter()
            .filter(|node| node.attribute("class") == Some(class))
            .map(|node| centre(*node))
            .collect::<Vec<_>>()
    };
    assert!(of("m s1")[0] < number(one, "x1"), "a loss lies left of 1.0");
    // 30 times as fast lies past the end of the scale: its mark is at the edge, with arrows.
    assert_eq!(of("m s0").len(), 4);
    assert!(of("m s0").iter().take(3).all(|x| *x > number(one, "x1")));
}

#[test]
fn the_page_needs_nothing_beside_itself() {
    let findings = findings();
    let page = html_of(&findings);
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    let outside: Vec<_> =
        page.match_indices("http").filter(|(at, _)| !page[*at..].starts_with("http://www.w3.org/2000/svg")).collect();
    assert!(outside.is_empty(), "{outside:?}");
    for tag in ["<link", "<img", "<iframe", "@import", "url(", " src="] {
        assert!(!page.contains(tag), "the page asks for something by {tag}");
    }
    assert!(!page.contains("a<b>"), "text is escaped");
    let losses = page.find("Where we lose").expect("losses");
    assert!(losses < page.find("<figure").expect("figures") && page[losses..].contains("35 % slower"));
    assert!(page.contains("nginx is not installed"));
    let data = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).expect("the data");
    let back: Findings = serde_json::from_str(data).expect("the data is JSON");
    let points = |findings: &Findings| -> Vec<usize> {
        let cases = findings.report.sections.iter().flat_map(|section| &section.cases);
        cases.flat_map(|case| &case.ours.runs).map(|run| run.cdf.as_ref().map_or(0, Vec::len)).collect()
    };
    assert_eq!(
        (&back.report.machine, points(&back)),
        (&findings.report.machine, points(&findings)),
        "every round is in it"
    );
    assert_eq!((&back.tables, &back.sweeps[0].series[0].name), (&findings.tables, &findings.sweeps[0].series[0].name));
    assert_eq!(page, html_of(&findings), "equal results give equal pages");
}

#[test]
fn a_page_of_very_many_points_still_opens() {
    let mut findings = findings();
    let section = &mut findings.report.sections[1];
    section.cases = (0..40).map(|at| case(&format!("case-{at}"), ratio(1.0, Verdict::NoDifference), 400)).collect();
    let page = html_of(&findings);
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    assert!(page.contains("No picture") && page.contains("thinned to"), "it says what was left out");
}

/// For the eye: `REELRING_PICTURES=folder cargo test -p reelring-bench -- --ignored shown`.
#[test]
#[ignore = "writes pictures to look at into $REELRING_PICTURES"]
fn shown() {
    let folder =
        std::path::PathBuf::from(std::env::var_os("REELRING_PICTURES").expect("REELRING_PICTURES names a folder"));
    let findings = findings();
    for picture in all_pictures(&findings) {
        std::fs::write(folder.join(picture.name + ".svg"), picture.svg).unwrap();
    }
    std::fs::write(folder.join("report.html"), html_of(&findings)).unwrap();
}
