//! Plugins through the library, with real worker processes and a real server on loopback.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use reelring::config::WorkerPath;
use reelring::error::{Failure, FailureKind};
use reelring::ingest::guard;
use reelring::plugins::{Extraction, Options, PluginState, PluginStatus, Plugins};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

/// Longer than anything here takes; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time that a plugin which never ends is given.
const SHORT: Duration = Duration::from_millis(700);

struct Bench {
    dir: tempfile::TempDir,
    plugins: Plugins,
}

impl Bench {
    async fn with(files: &[(&str, &str)]) -> Bench {
        Bench::set_up(files, guard::Policy { allow_private: true }, Options::default()).await
    }

    async fn hurried(files: &[(&str, &str)]) -> Bench {
        let options = Options { extract: SHORT, ..Options::default() };
        Bench::set_up(files, guard::Policy { allow_private: true }, options).await
    }

    async fn set_up(files: &[(&str, &str)], policy: guard::Policy, options: Options) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let worker = WorkerPath::find("reelring-plugin", None);
        worker.require().unwrap();
        let client = guard::Client::new(policy);
        let plugins = Plugins::start_with(dir.path().into(), worker, client, options).await;
        Bench { dir, plugins }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    async fn extract(&self, url: &str) -> Result<Extraction, Failure> {
        let url = Url::parse(url).unwrap();
        tokio::time::timeout(PATIENCE, self.plugins.extract(&url, &CancellationToken::new())).await.unwrap()
    }

    async fn found(&self, url: &str) -> String {
        self.extract(url).await.unwrap().url.to_string()
    }

    async fn failure(&self, url: &str) -> Failure {
        self.extract(url).await.unwrap_err()
    }

    fn status(&self, file: &str) -> Option<PluginStatus> {
        self.plugins.list().into_iter().find(|status| status.file == file)
    }

    /// Waits until the list shows it, and says how long that took.
    async fn until(&self, file: &str, wanted: impl Fn(Option<&PluginStatus>) -> bool) -> Duration {
        let start = Instant::now();
        while !wanted(self.status(file).as_ref()) {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.status(file));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        start.elapsed()
    }
}

/// A plugin for https://HOST.example/ with this body of `extract`.
fn plugin(host: &str, body: &str) -> String {
    format!(
        "export const manifest = {{ matches: ['*://{host}.example/*'] }};\nexport async function extract(url, ctx) {{\n{body}\n}}\n"
    )
}

/// A plugin whose answer names its version.
fn answering(version: &str) -> String {
    plugin("a", &format!("return {{ url: 'https://cdn.example/{version}.mp4' }};"))
}

/// Serves `answer(path)` as whole HTTP/1.1 responses on a loopback port.
async fn server(answer: impl Fn(&str) -> String + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let _ = socket.write_all(answer(path).as_bytes()).await;
            });
        }
    });
    address
}

fn page(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn assert_permanent(failure: &Failure, parts: &[&str]) {
    assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
    for part in parts {
        assert!(failure.message.contains(part), "{part:?} is not in {failure}");
    }
}

#[tokio::test]
async fn five_lines_turn_a_page_into_a_media_address() {
    let origin = server(|path| page(&format!("<video src=\"https://cdn.example{path}.mp4\">"))).await;
    let five_lines = r#"export const manifest = { matches: ["http://127.0.0.1/watch/*"] };
export async function extract(url, ctx) {
  const page = await ctx.fetch(url).then((r) => r.text());
  return { url: /src="([^"]+\.mp4)"/.exec(page)[1], title: "A film", http_headers: { Referer: url } };
}
"#;
    let bench = Bench::with(&[("site.js", five_lines)]).await;
    let url = format!("http://{origin}/watch/7");
    assert_eq!(bench.plugins.claims(&Url::parse(&url).unwrap()).as_deref(), Some("site"));
    assert_eq!(bench.plugins.claims(&Url::parse("http://127.0.0.1/other").unwrap()), None);
    let found = bench.extract(&url).await.unwrap();
    assert_eq!((found.url.as_str(), found.title.as_deref()), ("https://cdn.example/watch/7.mp4", Some("A film")));
    assert_eq!((found.headers["referer"].to_str().unwrap(), found.plugin.as_str()), (url.as_str(), "site"));
    let status = bench.status("site.js").unwrap();
    assert_eq!((status.state, status.version.as_deref(), status.last_error), (PluginState::Ready, Some("0"), None));
    assert_eq!(status.matches, ["http://127.0.0.1/watch/*"]);
    assert_permanent(&bench.failure("https://nobody.example/").await, &["no plugin matches https://nobody.example/"]);
}

#[tokio::test]
async fn a_private_address_is_refused_to_a_plugin() {
    let origin = server(|_| page("secret")).await;
    let body = format!("return {{ url: await ctx.fetch('http://{origin}/').then((r) => r.text()) }};");
    let open = plugin("a", &body);
    let bench = Bench::set_up(&[("a.js", &open)], guard::Policy { allow_private: false }, Options::default()).await;
    let failure = bench.failure("https://a.example/").await;
    assert_permanent(&failure, &["plugin a: FetchError", "refused", "127.0.0.1", "(a.js:3:"]);
}

/// The first hop is allowed here (private networks are), the second is to an address that never is.
#[tokio::test]
async fn a_redirect_to_a_refused_address_is_refused_as_well() {
    let origin = server(|path| match path {
        "/meta" => "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n".into(),
        "/file" => "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n".into(),
        _ => page("fine"),
    })
    .await;
    let body = format!("await ctx.fetch('http://{origin}' + new URL(url).pathname); return {{ url }};");
    let bench = Bench::with(&[("a.js", &plugin("a", &body))]).await;
    assert_eq!(bench.found("https://a.example/").await, "https://a.example/");
    assert_permanent(&bench.failure("https://a.example/meta").await, &["FetchError", "refused", "169.254.169.254"]);
    assert_permanent(&bench.failure("https://a.example/file").await, &["FetchError", "refused", "file:"]);
}

#[tokio::test]
async fn a_page_that_is_too_long_is_an_error_the_plugin_can_catch() {
    let origin = server(|_| page(&"x".repeat(9 << 20))).await;
    let body = format!(
        "const why = await ctx.fetch('http://{origin}/').catch((e) => e.message); return {{ url, title: String(why) }};"
    );
    let bench = Bench::with(&[("a.js", &plugin("a", &body))]).await;
    let title = bench.extract("https://a.example/").await.unwrap().title.unwrap();
    assert!(title.contains("longer than the limit of 8388608 bytes"), "{title}");
}

#[tokio::test]
async fn errors_name_plugin_file_line_and_column() {
    let bench = Bench::with(&[("a.js", &plugin("a", "  const none = null;\n  return none.url;"))]).await;
    assert_permanent(&bench.failure("https://a.example/").await, &["plugin a: TypeError: ", "'url'", "(a.js:4:15)"]);
    let bench = Bench::with(&[("a.js", &plugin("a", "return { url: 'ftp://x/' };"))]).await;
    assert_permanent(&bench.failure("https://a.example/").await, &["plugin a: url has the scheme \"ftp\""]);
}

#[tokio::test]
async fn an_edited_plugin_answers_with_the_new_code_within_two_seconds() {
    let bench = Bench::with(&[("a.js", &answering("one"))]).await;
    assert_eq!(bench.found("https://a.example/").await, "https://cdn.example/one.mp4");
    let first = bench.status("a.js").unwrap().generation;

    bench.write("a.js", &answering("two"));
    let start = Instant::now();
    while bench.found("https://a.example/").await != "https://cdn.example/two.mp4" {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    println!("written in place: the new code answered after {:?}", start.elapsed());
    assert!(bench.status("a.js").unwrap().generation > first);

    // As editors save: a temporary file, then a rename over the old one.
    bench.write(".a.js.swp", &answering("three"));
    fs::rename(bench.dir.path().join(".a.js.swp"), bench.dir.path().join("a.js")).unwrap();
    let start = Instant::now();
    while bench.found("https://a.example/").await != "https://cdn.example/three.mp4" {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    println!("renamed into place: the new code answered after {:?}", start.elapsed());
}

#[tokio::test]
async fn a_broken_edit_keeps_the_old_version_and_shows_its_error() {
    let bench = Bench::with(&[("a.js", &answering("one"))]).await;
    for (broken, reason) in [
        ("export const manifest = {\nexport", "SyntaxError"),
        ("throw new Error('at load');", "Error: at load (a.js:1:"),
        ("export async function extract() {}", "exports no manifest"),
        ("export const manifest = { matches: ['https://a/*'] };", "export async function extract"),
        ("export const manifest = { matches: ['a'] }; export async function extract() {}", "the pattern \"a\""),
        ("export const manifest = 7; export async function extract() {}", "manifest is not valid"),
    ] {
        bench.write("a.js", broken);
        bench
            .until("a.js", |status| status.is_some_and(|s| s.last_error.as_ref().is_some_and(|e| e.contains(reason))))
            .await;
        assert_eq!(bench.status("a.js").unwrap().state, PluginState::Ready, "the old version is at work");
        assert_eq!(bench.found("https://a.example/").await, "https://cdn.example/one.mp4");
    }
    bench.write("a.js", &answering("two"));
    bench.until("a.js", |status| status.is_some_and(|status| status.last_error.is_none())).await;
    assert_eq!(bench.found("https://a.example/").await, "https://cdn.example/two.mp4");
}

#[tokio::test]
async fn files_come_and_go() {
    let bench = Bench::with(&[("broken.js", "export {"), ("typed.ts", "")]).await;
    assert_eq!(bench.status("broken.js").unwrap().state, PluginState::Broken);
    let typed = bench.status("typed.ts").unwrap();
    assert_eq!(typed.state, PluginState::Ignored);
    assert!(typed.last_error.unwrap().contains("TypeScript"));

    bench.write("a.js", &answering("one"));
    bench.until("a.js", |status| status.is_some_and(|status| status.state == PluginState::Ready)).await;
    assert_eq!(bench.found("https://a.example/").await, "https://cdn.example/one.mp4");

    bench.write(
        "b.js",
        "export const manifest = { id: 'a', matches: ['*://b.example/*'] }; export function extract() {}",
    );
    bench
        .until("b.js", |status| {
            status.is_some_and(|s| s.last_error.as_ref().is_some_and(|e| e.contains("belongs to a.js")))
        })
        .await;

    fs::remove_file(bench.dir.path().join("a.js")).unwrap();
    bench.until("a.js", |status| status.is_none()).await;
    assert_eq!(bench.plugins.claims(&Url::parse("https://a.example/").unwrap()), None);
}

/// Each of these never ends by itself. It costs its own call; the next call and another plugin are answered.
#[tokio::test]
async fn what_never_ends_is_killed() {
    for (name, body) in [
        ("a loop", "for (;;) {}"),
        ("a loop in a native function", "return new Array(1e9) + '';"),
        ("a loop of promises", "for (;;) await null;"),
        ("a regular expression", "return /^(a+)+$/.exec('a'.repeat(60) + 'b');"),
        ("a wait", "await new Promise((done) => setTimeout(done, 1e6));"),
    ] {
        let body = format!("if (url.endsWith('bad')) {{ {body} }}\nreturn {{ url }};");
        let bench = Bench::hurried(&[("a.js", &plugin("a", &body)), ("b.js", &plugin("b", "return { url };"))]).await;
        let start = Instant::now();
        let (failure, other) = tokio::join!(bench.failure("https://a.example/bad"), bench.found("https://b.example/"));
        assert_permanent(&failure, &["plugin a: extract ran longer than 0.7 s and was stopped"]);
        assert_eq!(other, "https://b.example/", "{name} cost another plugin its answer");
        assert!(start.elapsed() < SHORT + Duration::from_secs(5), "{name} took {:?}", start.elapsed());
        assert_eq!(bench.found("https://a.example/").await, "https://a.example/", "no life after {name}");
    }
}

#[tokio::test]
async fn calls_that_share_a_worker_with_a_loop_are_answered() {
    let body = "await new Promise((done) => setTimeout(done, 50));
        if (url.endsWith('bad')) for (;;) {}
        await new Promise((done) => setTimeout(done, 50)); return { url };";
    let bench = Bench::hurried(&[("a.js", &plugin("a", body))]).await;
    let good = all((0..5).map(|_| bench.found("https://a.example/")));
    let (good, bad) = tokio::join!(good, bench.failure("https://a.example/bad"));
    assert_eq!(good, vec!["https://a.example/"; 5]);
    assert_permanent(&bad, &["extract ran longer than 0.7 s and was stopped"]);
}

#[tokio::test]
async fn a_call_does_not_wait_for_a_loop_in_another() {
    let body = "if (url.endsWith('bad')) for (;;) {}\nreturn { url };";
    let bench = Bench::with(&[("a.js", &plugin("a", body))]).await;
    let (url, cancel) = (Url::parse("https://a.example/bad").unwrap(), CancellationToken::new());
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let found = bench.found("https://a.example/").await;
        cancel.cancel();
        found
    };
    // The loop has the default 30 s, the call beside it is answered in PATIENCE at the most.
    let (bad, found) = tokio::join!(bench.plugins.extract(&url, &cancel), late);
    assert_eq!(bad.unwrap_err().kind, FailureKind::Cancelled, "the loop was still going on");
    assert_eq!(found, "https://a.example/");
    bench.plugins.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_needs_too_much_memory_is_stopped() {
    for (name, body) in [
        ("objects", "const all = []; for (;;) all.push({ a: new Array(5000).fill(0) });"),
        ("strings", "const all = []; for (;;) all.push('x'.repeat(1 << 20) + all.length);"),
        ("array buffers", "const all = []; for (;;) all.push(new ArrayBuffer(64 << 20));"),
        ("buffers", "const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1));"),
        (
            "promises",
            "const all = []; for (;;) { const held = new Array(5000).fill(0); all.push(Promise.resolve().then(() => held)); }",
        ),
        ("timers", "for (;;) setTimeout(() => {}, 1e6, new Array(5000).fill(0));"),
    ] {
        let body = format!("if (url.endsWith('bad')) {{ {body} }}\nreturn {{ url }};");
        let bench = Bench::with(&[("a.js", &plugin("a", &body))]).await;
        let start = Instant::now();
        let failure = bench.failure("https://a.example/bad").await;
        println!("{name}: {failure} (after {:?})", start.elapsed());
        assert_permanent(&failure, &["plugin a: ", "memory"]);
        assert_eq!(bench.found("https://a.example/").await, "https://a.example/", "no life after {name}");
    }
}

/// Pages lie outside the JavaScript heap; the limit of the whole process holds them.
#[tokio::test]
async fn a_plugin_that_hoards_pages_is_stopped() {
    let origin = server(|_| page(&"x".repeat(8 << 20))).await;
    let body = format!(
        "const all = []; for (let n = 0; n < 64; n++) {{ const r = await ctx.fetch('http://{origin}/'); all.push(r, await r.text()); }}
         return {{ url }};"
    );
    let bench = Bench::with(&[("a.js", &plugin("a", &body))]).await;
    let failure = bench.failure("https://a.example/").await;
    println!("hoarded pages: {failure}");
    assert_permanent(&failure, &["memory"]);
}

#[tokio::test]
async fn a_flood_of_fetches_meets_its_limit() {
    let origin = server(|_| page("x")).await;
    let body = format!(
        "const all = await Promise.allSettled(Array.from({{ length: 10000 }}, () => ctx.fetch('http://{origin}/')));
         return {{ url, title: String(all.filter((one) => one.status === 'fulfilled').length) }};"
    );
    let bench = Bench::with(&[("a.js", &plugin("a", &body))]).await;
    assert_eq!(bench.extract("https://a.example/").await.unwrap().title.as_deref(), Some("64"));
}

#[tokio::test]
async fn calls_in_flight_end_with_the_code_they_began_with() {
    const CALLS: usize = 20;
    let origin = server(|_| page("late")).await;
    let version = |n: u32| {
        let wait = "await new Promise((done) => setTimeout(done, 600));";
        plugin(
            "a",
            &format!("await ctx.fetch('http://{origin}/'); {wait} return {{ url: 'https://cdn.example/{n}' }};"),
        )
    };
    let bench = Bench::with(&[("a.js", &version(1))]).await;
    let calls = (0..CALLS).map(|_| bench.found("https://a.example/"));
    let edit = async {
        bench.write("a.js", &version(2));
        bench.until("a.js", |status| status.and_then(|status| status.generation) == Some(2)).await;
        bench.found("https://a.example/").await
    };
    let (old, new) = tokio::join!(all(calls), edit);
    assert_eq!(old, vec!["https://cdn.example/1"; CALLS]);
    assert_eq!(new, "https://cdn.example/2");
}

async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(futures).await
}

#[tokio::test]
async fn a_worker_killed_from_outside_costs_its_call_and_no_more() {
    // A name of its own for the executable, to find the process by.
    let WorkerPath::Found(installed) = worker() else { panic!() };
    let folder = tempfile::tempdir_in(installed.parent().unwrap()).unwrap();
    let executable = folder.path().join("reelring-plugin");
    fs::hard_link(&installed, &executable).unwrap();
    let pids = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let ours = all.filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == executable));
        ours.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).collect::<Vec<_>>()
    };

    let slow = plugin("a", "if (url.endsWith('slow')) await new Promise((d) => setTimeout(d, 1e6)); return { url };");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.js"), slow).unwrap();
    let client = guard::Client::new(guard::Policy::default());
    let plugins = Plugins::start(dir.path().into(), WorkerPath::Found(executable.clone()), client, PATIENCE).await;
    let bench = Bench { dir, plugins };
    let kill = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let pids = pids();
        assert_eq!(pids.len(), 1, "one plugin has one worker");
        let pid = rustix::process::Pid::from_raw(pids[0]).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let (failure, ()) = tokio::join!(bench.failure("https://a.example/slow"), kill);
    assert_eq!(failure.kind, FailureKind::Transient, "{failure}");
    assert!(failure.message.contains("plugin a: its worker was ended from outside (signal: 9"), "{failure}");
    assert_eq!(bench.found("https://a.example/").await, "https://a.example/");
    bench.plugins.shutdown().await;
    assert_eq!(pids(), [] as [i32; 0], "a shutdown leaves no worker");
}

#[tokio::test]
async fn an_idle_worker_is_ended_and_comes_back() {
    let options = Options { idle: Duration::from_millis(50), ..Options::default() };
    let bench = Bench::set_up(&[("a.js", &answering("one"))], guard::Policy::default(), options).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert_eq!(bench.found("https://a.example/").await, "https://cdn.example/one.mp4");
    }
}

#[tokio::test]
async fn a_cancelled_extract_returns_at_once_and_a_shutdown_ends_the_rest() {
    let bench = Bench::with(&[("a.js", &plugin("a", "for (;;) {}"))]).await;
    let url = Url::parse("https://a.example/").unwrap();
    let cancel = CancellationToken::new();
    let call = bench.plugins.extract(&url, &cancel);
    let (answer, ()) = tokio::join!(call, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
    });
    assert_eq!(answer.unwrap_err().kind, FailureKind::Cancelled);
    let start = Instant::now();
    let never = CancellationToken::new();
    let (answer, ()) = tokio::join!(bench.plugins.extract(&url, &never), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.plugins.shutdown().await;
    });
    assert_eq!(answer.unwrap_err().kind, FailureKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(bench.plugins.list().is_empty());
}

#[tokio::test]
async fn a_missing_worker_is_said_in_the_list() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.js"), answering("one")).unwrap();
    let missing = WorkerPath::Missing { name: "reelring-plugin", searched: vec!["/nowhere/reelring-plugin".into()] };
    let client = guard::Client::new(guard::Policy::default());
    let plugins = Plugins::start(dir.path().into(), missing, client, PATIENCE).await;
    let list = plugins.list();
    assert_eq!((list.len(), list[0].state), (1, PluginState::Unavailable));
    assert!(list[0].last_error.as_ref().unwrap().contains("reelring-plugin is not installed (looked for /nowhere"));
    let url = Url::parse("https://a.example/").unwrap();
    assert_eq!(plugins.claims(&url), None);
    let failure = plugins.extract(&url, &CancellationToken::new()).await.unwrap_err();
    assert_permanent(&failure, &["not installed"]);
}

#[tokio::test]
async fn a_plugin_that_hangs_while_loading_holds_up_no_other() {
    let options = Options { load: SHORT, ..Options::default() };
    let files = [("hang.js", "for (;;) {}"), ("a.js", &answering("one"))];
    let bench = Bench::set_up(&files, guard::Policy::default(), options).await;
    let status = bench.status("hang.js").unwrap();
    assert_eq!(status.state, PluginState::Broken);
    assert!(status.last_error.unwrap().contains("loading took longer than 0.7 s"));
    assert_eq!(bench.found("https://a.example/").await, "https://cdn.example/one.mp4");
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_is_said_in_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugins");
    fs::write(&path, "a file in its place").unwrap();
    let plugins = Plugins::start(path.clone(), worker(), guard::Client::new(guard::Policy::default()), PATIENCE).await;
    let list = plugins.list();
    assert_eq!((list.len(), list[0].state, Path::new(&list[0].file)), (1, PluginState::Broken, path.as_path()));
}

fn worker() -> WorkerPath {
    WorkerPath::find("reelring-plugin", None)
}
