//! The worker as the node meets it: a real process on one end of a socket pair, and this test on the other.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use reelring_protocol::plugin::{Dying, LogLevel, Position, ScriptError, ToNode, ToWorker, WORKER, limits};
use reelring_protocol::{Frame, FrameReader, FrameWriter, Hello};

/// Longer than anything here takes; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Worker {
    child: Child,
    reader: FrameReader<UnixStream>,
    writer: FrameWriter<UnixStream>,
    calls: u64,
}

impl Worker {
    fn start() -> Worker {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_reelring-plugin"))
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut reader = FrameReader::new(ours.try_clone().unwrap());
        let hello: Frame<Hello> = reader.read().unwrap().unwrap();
        hello.message.check(WORKER).unwrap();
        Worker { child, reader, writer: FrameWriter::new(ours), calls: 0 }
    }

    /// A worker with this plugin in it, and the manifest's JSON.
    fn with(source: &str) -> (Worker, String) {
        let mut worker = Worker::start();
        worker.send_source(source);
        let frame = worker.next();
        assert_eq!(frame.message, ToNode::Loaded);
        (worker, text(&frame))
    }

    fn send_source(&mut self, source: &str) {
        let load = ToWorker::Load { file: "test.js".into(), cpu_s: 5 };
        self.writer.write(&load, source.as_bytes()).unwrap();
    }

    fn send(&mut self, message: ToWorker, payload: &[u8]) {
        self.writer.write(&message, payload).unwrap();
    }

    /// The next message but `Begun`.
    fn next(&mut self) -> Frame<ToNode> {
        loop {
            let frame: Frame<ToNode> = self.reader.read().unwrap().expect("the worker ended");
            if !matches!(frame.message, ToNode::Begun { .. }) {
                return frame;
            }
        }
    }

    fn begin(&mut self, url: &str) -> u64 {
        self.calls += 1;
        self.send(ToWorker::Extract { call: self.calls, url: url.into(), cpu_s: 5 }, b"");
        self.calls
    }

    /// Calls `extract` and gives its JSON or its error.
    fn extract(&mut self, url: &str) -> Result<String, ScriptError> {
        let wanted = self.begin(url);
        let frame = self.next();
        match frame.message {
            ToNode::Extracted { call } if call == wanted => Ok(text(&frame)),
            ToNode::ExtractFailed { call, error } if call == wanted => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// Closes the socket and waits for the end.
    fn wait(self) -> ExitStatus {
        let Worker { mut child, reader, writer, .. } = self;
        drop((reader, writer));
        child.wait().unwrap()
    }
}

fn text(frame: &Frame<ToNode>) -> String {
    String::from_utf8(frame.payload.to_vec()).unwrap()
}

/// `extract` with this body and nothing else.
fn body(code: &str) -> String {
    format!(
        "export const manifest = {{ matches: ['https://a/*'] }};\nexport async function extract(url, ctx) {{\n{code}\n}}"
    )
}

fn run(code: &str) -> Result<String, ScriptError> {
    Worker::with(&body(code)).0.extract("https://a/b?c=d#e")
}

fn value(code: &str) -> serde_json::Value {
    serde_json::from_str(&run(code).unwrap()).unwrap()
}

#[test]
fn a_plugin_says_its_manifest_and_answers() {
    let (mut worker, manifest) = Worker::with(&body("return { url: url + '/x', title: 'T' };"));
    assert_eq!(manifest, r#"{"matches":["https://a/*"]}"#);
    assert_eq!(worker.extract("https://a/1").unwrap(), r#"{"url":"https://a/1/x","title":"T"}"#);
    assert_eq!(worker.extract("https://a/2").unwrap(), r#"{"url":"https://a/2/x","title":"T"}"#);
    assert_eq!(worker.wait().code(), Some(0), "a worker ends when the node closes the socket");
}

#[test]
fn a_fetch_is_done_by_the_node() {
    let code = "const r = await ctx.fetch('https://page/', { method: 'post', headers: { 'X-A': 'b' }, body: 'grüße' });
        return [r.status, r.ok, r.url, r.headers.get('Content-Type'), await r.text(), [...await r.bytes()]];";
    let (mut worker, _) = Worker::with(&body(code));
    let call = worker.begin("https://a/");
    let frame = worker.next();
    let ToNode::Fetch { call: on_behalf, fetch, method, url, headers, has_body } = frame.message else {
        panic!("{:?}", frame.message)
    };
    assert_eq!((on_behalf, method.as_str(), url.as_str(), has_body), (call, "POST", "https://page/", true));
    assert_eq!(headers, [("x-a".to_string(), "b".to_string())]);
    assert_eq!(&frame.payload[..], "grüße".as_bytes());
    let headers = vec![("content-type".into(), "text/html".into())];
    worker.send(ToWorker::Fetched { fetch, status: 201, url: "https://page/2".into(), headers }, "é".as_bytes());
    assert_eq!(text(&worker.next()), r#"[201,true,"https://page/2","text/html","é",[195,169]]"#);
}

#[test]
fn a_failed_fetch_is_an_error_at_the_place_of_the_call() {
    let (mut worker, _) = Worker::with(&body("const r =\n  await ctx.fetch('http://10.0.0.1/');"));
    worker.begin("https://a/");
    let ToNode::Fetch { fetch, .. } = worker.next().message else { panic!() };
    worker.send(ToWorker::FetchFailed { fetch, message: "refused".into() }, b"");
    let ToNode::ExtractFailed { error, .. } = worker.next().message else { panic!() };
    assert_eq!(error.message, "FetchError: refused");
    assert_eq!(error.at.map(|at| at.line), Some(4));
}

#[test]
fn a_request_beyond_the_limits_never_leaves_the_worker() {
    for (request, part) in [
        ("'https://a/', { method: 'x'.repeat(1e6) }", "method is 1000000, the limit is 16"),
        ("'https://a/' + 'x'.repeat(9000)", "URL is 9010, the limit is 8192"),
        ("'https://a/', { headers: { a: 'x'.repeat(40000) } }", "headers is 40001, the limit is 32768"),
        ("'https://a/', { headers: Array(101).fill(['a', 'b']) }", "headers is 101, the limit is 100"),
        ("'https://a/', { body: 'x'.repeat(2 << 20) }", "body is 2097152, the limit is 1048576"),
    ] {
        let error = run(&format!("await ctx.fetch({request});")).unwrap_err();
        assert!(error.message.starts_with("FetchError: ") && error.message.contains(part), "{error:?}");
    }
}

/// JSON makes six bytes of a control character; what the limits allow must fit into a frame all the same.
#[test]
fn the_largest_request_leaves_the_worker() {
    let code = "await ctx.fetch('\\u0001'.repeat(8192), { method: '\\u0001'.repeat(16), headers: Array(100).fill(['a', '\\u0001'.repeat(326)]) });";
    let (mut worker, _) = Worker::with(&body(code));
    worker.begin("https://a/");
    assert!(matches!(worker.next().message, ToNode::Fetch { .. }));
}

#[test]
fn an_answer_that_is_not_json_is_an_error_at_the_place_of_the_call() {
    let (mut worker, _) = Worker::with(&body("const r = await ctx.fetch('https://a/');\nreturn await r.json();"));
    worker.begin("https://a/");
    let ToNode::Fetch { fetch, .. } = worker.next().message else { panic!() };
    let answer = ToWorker::Fetched { fetch, status: 200, url: "https://a/z".into(), headers: vec![] };
    worker.send(answer, b"<html>");
    let ToNode::ExtractFailed { error, .. } = worker.next().message else { panic!() };
    assert!(
        error.message.starts_with("SyntaxError: ") && error.message.ends_with("in the answer of https://a/z"),
        "{error:?}"
    );
    assert_eq!(error.at.map(|at| at.line), Some(4));
}

#[test]
fn errors_outside_of_a_call_are_logged_and_cost_nothing() {
    let code = "Promise.reject(new Error('nobody waits')); setTimeout(() => { throw new Error('in a timer'); }, 1);
        await new Promise((done) => setTimeout(done, 50)); return 1;";
    let (mut worker, _) = Worker::with(&body(code));
    worker.begin("https://a/");
    let mut logged = String::new();
    loop {
        let frame = worker.next();
        match frame.message {
            ToNode::Log { level: LogLevel::Error, text } => logged += &text,
            ToNode::Extracted { .. } => break assert_eq!(text(&frame), "1"),
            other => panic!("{other:?}"),
        }
    }
    assert!(logged.contains("Error: nobody waits") && logged.contains("Error: in a timer"), "{logged}");
}

#[test]
fn calls_run_side_by_side() {
    let (mut worker, _) = Worker::with(&body("return (await ctx.fetch(url)).status;"));
    let calls = [worker.begin("https://a/1"), worker.begin("https://a/2")];
    let mut fetches = Vec::new();
    for _ in calls {
        let ToNode::Fetch { call, fetch, .. } = worker.next().message else { panic!() };
        fetches.push((call, fetch));
    }
    for &(call, fetch) in fetches.iter().rev() {
        let answer = ToWorker::Fetched { fetch, status: 200, url: "https://a/".into(), headers: vec![] };
        worker.send(answer, b"");
        assert_eq!(worker.next().message, ToNode::Extracted { call });
    }
}

#[test]
fn errors_carry_line_and_column() {
    for (code, message, at) in [
        ("  null.x;", "TypeError: Cannot read properties of null (reading 'x')", (3, 8)),
        ("await 0;\n throw new RangeError('far');", "RangeError: far", (4, 8)),
    ] {
        let error = run(code).unwrap_err();
        assert_eq!((error.message.as_str(), error.at), (message, Some(Position { line: at.0, column: at.1 })));
    }
    for (thrown, message) in [
        ("'just text'", "just text"),
        ("null", "null"),
        ("{ code: 7 }", r#"{"code":7}"#),
        ("Object.create(null)", "{}"),
        ("{ get message() { throw 1; } }", "[object Object]"),
    ] {
        assert_eq!(run(&format!("throw {thrown};")).unwrap_err().message, message);
    }
}

#[test]
fn a_plugin_that_cannot_be_loaded_says_where() {
    for (source, message, line) in [
        ("export const manifest = {};\nexport function extract( {", "SyntaxError", Some(2)),
        ("const x = 1;\nundefinedName();\nexport function extract() {}", "ReferenceError: undefinedName", Some(2)),
        ("export const manifest = {};", "export async function extract", None),
        ("import { x } from './other.js';\nexport function extract() {}", "single file", None),
        ("await new Promise(() => {});\nexport function extract() {}", "promise", Some(1)),
    ] {
        let mut worker = Worker::start();
        worker.send_source(source);
        let ToNode::LoadFailed { error } = worker.next().message else { panic!("{source} was loaded") };
        assert!(error.message.contains(message), "{source}: {error:?}");
        assert_eq!(error.at.map(|at| at.line), line, "{source}: {error:?}");
    }
}

#[test]
fn the_web_platform_that_extractors_need_is_there() {
    let url = value(
        "const u = new URL('../x y?q=1&q=2&r=%20', 'https://user@h:8443/a/b/c'); u.searchParams.append('s', '&'); u.hash = 'z';
         return [u.href, u.host, u.port, u.pathname, u.searchParams.getAll('q'), u.origin, String(new URLSearchParams({ a: 'b c' })),
                 URL.canParse('nonsense'), JSON.stringify(u)];",
    );
    assert_eq!(url[0], "https://user@h:8443/a/x%20y?q=1&q=2&r=+&s=%26#z");
    assert_eq!(url[1], "h:8443");
    assert_eq!(url[2], "8443");
    assert_eq!(url[3], "/a/x%20y");
    assert_eq!(url[4], serde_json::json!(["1", "2"]));
    assert_eq!(url[5], "https://h:8443");
    assert_eq!(url[6], "a=b+c");
    assert_eq!(url[7], false);
    assert_eq!(url[8], format!("{}", url[0]));

    let text = value(
        "return [atob('aGk='), btoa('hi'), atob(' aGk '), new TextDecoder().decode(new TextEncoder().encode('żółw')),
                 new TextDecoder('latin1').decode(new Uint8Array([0xe9])), [...new TextEncoder().encode('é')]];",
    );
    assert_eq!(text, serde_json::json!(["hi", "aGk=", "hi", "żółw", "é", [195, 169]]));

    let timers = value(
        "const seen = []; const never = setTimeout(() => seen.push('never'), 5); clearTimeout(never);
         await new Promise((done) => setTimeout((a) => { seen.push(a); done(); }, 10, 'later')); return seen;",
    );
    assert_eq!(timers, serde_json::json!(["later"]));
}

#[test]
fn nothing_of_the_engine_leaks_to_the_plugin() {
    assert!(run("globalThis.Error = null; null.x;").unwrap_err().message.starts_with("TypeError"));
    let left = value(
        "return ['Deno', '__bootstrap', 'WebAssembly', 'process', 'require', 'fetch', 'Atomics'].filter((name) => name in globalThis);",
    );
    assert_eq!(left, serde_json::json!([]));
    assert!(run("return (await import('file:///etc/passwd')).default;").unwrap_err().message.contains("single file"));
}

#[test]
fn the_console_reaches_the_node_and_is_bounded() {
    let (mut worker, _) =
        Worker::with(&body("console.warn('a', { b: 1 }); for (let i = 0; i < 1e4; i++) console.log(i); return 1;"));
    worker.begin("https://a/");
    let mut lines = Vec::new();
    loop {
        match worker.next().message {
            ToNode::Log { level, text } => lines.push((level, text)),
            ToNode::Extracted { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lines[0], (LogLevel::Warn, "a {\"b\":1}".into()));
    assert_eq!(lines.len(), limits::LOG_LINES as usize + 1);
    assert!(lines.last().unwrap().1.contains("dropped"));
}

#[test]
fn fetches_of_one_call_are_counted() {
    let flood = "const all = await Promise.allSettled(Array.from({ length: 1000 }, () => ctx.fetch('https://a/')));
                 return all.filter((one) => String(one.reason).includes('may fetch')).length;";
    let (mut worker, _) = Worker::with(&body(flood));
    worker.begin("https://a/");
    let mut fetches = 0;
    loop {
        let frame = worker.next();
        match frame.message {
            ToNode::Fetch { fetch, .. } => {
                fetches += 1;
                worker.send(ToWorker::FetchFailed { fetch, message: "no".into() }, b"");
            }
            ToNode::Extracted { .. } => {
                assert_eq!(text(&frame), (1000 - limits::FETCHES_PER_CALL).to_string());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fetches, limits::FETCHES_PER_CALL);
}

#[test]
fn a_promise_that_nothing_can_settle_ends_the_call_at_once() {
    let (mut worker, _) = Worker::with(&body("if (url.endsWith('stuck')) await new Promise(() => {}); return 1;"));
    assert!(worker.extract("https://a/stuck").unwrap_err().message.contains("nothing can settle"));
    assert_eq!(worker.extract("https://a/").unwrap(), "1", "the worker goes on");
}

#[test]
fn a_result_without_json_is_null_and_a_long_one_an_error() {
    assert_eq!(run("return undefined;").unwrap(), "null");
    assert!(run("return 'x'.repeat(2 << 20);").unwrap_err().message.contains("the limit is"));
    assert!(run("const a = {}; a.a = a; return a;").unwrap_err().message.contains("circular"));
}

#[test]
fn deep_recursion_is_an_error_of_the_plugin() {
    for code in [
        "const f = () => f() + 1; return f();",
        "return JSON.parse('['.repeat(1e6));",
        "let a = []; for (let i = 0; i < 1e6; i++) a = [a]; return String(a);",
        "return eval('('.repeat(1e6));",
    ] {
        let error = run(code).unwrap_err();
        assert!(error.message.contains("stack"), "{code}: {error:?}");
    }
}

/// The end of the worker, whatever way it takes, comes before its address space is spent.
fn ends(code: &str) -> (Option<ToNode>, ExitStatus) {
    let (mut worker, _) = Worker::with(&body(code));
    worker.begin("https://a/");
    let mut last = None;
    while let Ok(Some(frame)) = worker.reader.read::<ToNode>() {
        last = Some(frame.message);
    }
    (last, worker.wait())
}

#[test]
fn a_heap_bomb_is_named() {
    let (last, _) = ends("const all = []; for (;;) all.push({ a: [1, 2, 3] });");
    assert_eq!(last, Some(ToNode::Dying { reason: Dying::OutOfMemory { limit_bytes: limits::HEAP_BYTES as u64 } }));
}

#[test]
fn a_loop_is_ended_by_the_kernel_when_its_processor_time_is_spent() {
    let (mut worker, _) = Worker::with(&body("for (;;) {}"));
    worker.send(ToWorker::Extract { call: 1, url: "https://a/".into(), cpu_s: 0 }, b"");
    assert!(matches!(worker.reader.read::<ToNode>(), Ok(Some(Frame { message: ToNode::Begun { call: 1 }, .. }))));
    assert!(matches!(worker.reader.read::<ToNode>(), Ok(None) | Err(_)));
    assert_eq!(worker.wait().signal(), Some(24), "SIGXCPU");
}

#[test]
fn the_end_of_the_node_ends_even_a_worker_in_a_loop() {
    let (mut worker, _) = Worker::with(&body("console.log('in'); for (;;) {}"));
    worker.begin("https://a/");
    assert!(matches!(worker.next().message, ToNode::Log { .. }));
    assert_eq!(worker.wait().code(), Some(0));
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_reelring-plugin")).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by reelring"), "{output:?}");
}

/// What the kernel would let the plugin's process do, asked of the kernel.
#[test]
fn the_process_is_confined() -> io::Result<()> {
    let (worker, _) = Worker::with(&body("return 1;"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id()))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert_eq!(field("NoNewPrivs:"), Some("1"));
    assert_eq!(field("Seccomp:"), Some("2"), "a system call filter");
    let limits_text = std::fs::read_to_string(format!("/proc/{}/limits", worker.child.id()))?;
    let row = |name: &str| limits_text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(row("Max address space").contains(&limits::ADDRESS_SPACE_BYTES.to_string()));
    assert!(row("Max core file size").split_whitespace().any(|word| word == "0"));
    assert!(row("Max file size").split_whitespace().any(|word| word == "0"));
    Ok(())
}
