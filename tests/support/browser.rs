//! A headless Chromium, spoken to over its debugging pipe: open a page, ask it something, take a picture.
//!
//! The pipe is two named ones, handed over by a shell as descriptors 3 and 4, which is where Chromium looks for them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::process::{Owned, find};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running browser with one page.
pub struct Browser {
    process: Owned,
    commands: File,
    answers: Receiver<Value>,
    session: String,
    calls: u64,
    _profile: tempfile::TempDir,
}

/// Chromium under one of its names.
pub fn executable() -> Option<PathBuf> {
    ["chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"].into_iter().find_map(find)
}

impl Browser {
    pub fn start(executable: &Path) -> Browser {
        let profile = super::scratch("browser");
        let pipe = |name: &str| {
            let path = profile.path().join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a named pipe");
            path
        };
        let (to, from) = (pipe("to"), pipe("from"));
        let log = File::create(profile.path().join("log")).expect("the browser's log");
        let process = Owned::spawn(
            Command::new("sh")
                .args(["-c", r#"in=$1; out=$2; shift 2; exec "$@" 3<"$in" 4>"$out""#, "sh"])
                .args([&to, &from])
                .arg(executable)
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
                .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
                .args(["--disable-dev-shm-usage", "--mute-audio", "--autoplay-policy=no-user-gesture-required"])
                .args(["--window-size=1100,1000", "--remote-debugging-pipe"])
                .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("the log"))
                .stderr(log),
        );
        // In the order in which the shell opens them: each waits for the other end.
        let commands = File::options().write(true).open(&to).expect("the pipe to the browser");
        let answers = read(File::open(&from).expect("the pipe from the browser"));
        let mut browser = Browser { process, commands, answers, session: String::new(), calls: 0, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session =
            browser.call("Target.attachToTarget", attach)["sessionId"].as_str().expect("a session").into();
        browser
    }

    /// One command of the DevTools protocol, to the page once there is one.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut command = json!({"id": self.calls, "method": method, "params": parameters});
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let mut line = command.to_string().into_bytes();
        line.push(0);
        self.commands.write_all(&line).expect("the browser listens");
        let start = Instant::now();
        loop {
            let answer = match self.answers.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {method} in {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser ended during {method}"),
            };
            // Everything else is an event nobody waits for.
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    pub fn open(&mut self, address: &str) {
        let opened = self.call("Page.navigate", json!({"url": address}));
        assert!(opened["errorText"].is_null(), "{address}: {opened}");
    }

    /// The value of an expression in the page, which may still be on its way: the caller asks for what it needs.
    pub fn ask(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// A PNG of the page in base64.
    pub fn picture(&mut self) -> String {
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}));
        picture["data"].as_str().expect("a picture").into()
    }

    pub fn running(&mut self) -> bool {
        self.process.running()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its own children end with it only when it is asked.
        self.session.clear();
        let close = json!({"id": 0, "method": "Browser.close"}).to_string() + "\0";
        let _ = self.commands.write_all(close.as_bytes());
        let start = Instant::now();
        while self.process.running() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Messages end with a zero byte.
fn read(pipe: File) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(pipe).split(0) {
            let Ok(message) = message else { return };
            let Ok(message) = serde_json::from_slice(&message) else { return };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
