//! Who may do what: tokens and their scopes, signed addresses, the owner's socket, foreign pages, listening beyond loopback.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::node::{Node, forget_address, log_tail, reelring, serve};
use crate::support::process::Owned;
use crate::support::{media, scratch};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Method;
use ring::hmac;
use serde_json::{Value, json};

const MINUTES: Duration = Duration::from_secs(180);

/// What a command prints; it must succeed.
#[track_caller]
fn command(data: &Path, arguments: &[&str]) -> String {
    let output = reelring(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim_end().to_string()
}

fn token(data: &Path, name: &str, scope: &str) -> String {
    command(data, &["token", "create", name, "--scope", scope])
}

async fn status(node: &Node, method: Method, path: &str, token: Option<&str>) -> u16 {
    let request = node.request(method, path);
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    request.send().await.expect("an answer").status().as_u16()
}

/// As programs see it that know addresses and nothing else.
fn curl(arguments: &[&str]) -> (u16, Vec<u8>) {
    let output = Command::new("curl").args(["-s", "-w", "\n%{http_code}"]).args(arguments).output().expect("curl runs");
    let at = output.stdout.iter().rposition(|byte| *byte == b'\n').expect("a status");
    let status = String::from_utf8_lossy(&output.stdout[at + 1..]).parse().expect("a status");
    (status, output.stdout[..at].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_what_its_scope_says() {
    let folder = scratch("scopes");
    let data = folder.path().join("data");
    let [read, write, admin] = ["read", "write", "admin"].map(|scope| token(&data, scope, scope));
    let node = Node::start(&data).await;
    assert_eq!(status(&node, Method::PUT, "/v1/objects/a", Some(&write)).await, 201);
    // Method, path, and what nobody, read, write and admin are answered.
    let get = || Method::GET;
    for (method, path, expected) in [
        (get(), "/v1/objects/a", [401, 200, 403, 200]),
        (Method::HEAD, "/v1/objects/a", [401, 200, 403, 200]),
        (get(), "/v1/objects", [401, 200, 403, 200]),
        (get(), "/v1/objects?prefix=a", [401, 200, 403, 200]),
        (get(), "/v1/assets", [401, 200, 403, 200]),
        (get(), "/metrics", [401, 200, 403, 200]),
        (Method::PUT, "/v1/objects/b", [401, 403, 201, 200]),
        (Method::DELETE, "/v1/objects/none", [401, 403, 404, 404]),
        (get(), "/v1/jobs", [401, 403, 200, 200]),
        (Method::DELETE, "/v1/jobs/0123456789abcdef0123456789abcdef", [401, 403, 404, 404]),
        (get(), "/v1/volumes", [401, 403, 403, 200]),
        (get(), "/v1/plugins", [401, 403, 403, 200]),
        (get(), "/v1/scrub", [401, 403, 403, 200]),
        (get(), "/v1/tokens", [401, 403, 403, 200]),
        (Method::DELETE, "/v1/tokens/none", [401, 403, 403, 404]),
        (get(), "/v1/nothing", [401, 404, 404, 404]),
        (get(), "/healthz", [200, 200, 200, 200]),
        (get(), "/readyz", [200, 200, 200, 200]),
    ] {
        let mut seen = Vec::new();
        for token in [None, Some(&read), Some(&write), Some(&admin)] {
            seen.push(status(&node, method.clone(), path, token.map(String::as_str)).await);
        }
        assert_eq!(seen, expected, "{method} {path}");
    }

    let refused = node.get("/v1/objects").send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"reelring\"");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["type"], "urn:reelring:problem:token");
    assert!(problem["detail"].as_str().unwrap().contains("reelring token create"), "{problem}");
    // Strangers learn that it is ready, and nothing about its disks.
    let told = node.json("/readyz").await;
    assert_eq!(told, json!({"status": "ready"}));
    let told: Value = node.get("/readyz").bearer_auth(&admin).send().await.unwrap().json().await.unwrap();
    assert!(told["volumes"].is_array(), "{told}");

    // Programs that know no Bearer give it as a password.
    let with_user = node.object_url("a").replace("http://", &format!("http://anybody:{read}@"));
    assert_eq!(curl(&[&with_user]).0, 200);
    for wrong in ["x", "", &read[..read.len() - 1], &format!("{read}0"), &read.to_uppercase(), &read.replace('_', "-")]
    {
        assert_eq!(status(&node, Method::GET, "/v1/objects/a", Some(wrong)).await, 401, "{wrong}");
    }
    let answer = node.object("a").bearer_auth(&read).send().await.unwrap();
    assert!(answer.headers()["cache-control"].to_str().unwrap().starts_with("private"));
    // No secret in the data directory or the log.
    let secret = read.rsplit('_').next().unwrap();
    let kept = std::fs::read_to_string(data.join("access.json")).unwrap();
    assert!(!kept.contains(secret) && !node.log().contains(secret));
    assert_eq!(data.join("access.json").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_closes_a_running_node_and_the_owner_needs_none() {
    let folder = scratch("first-token");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    assert_eq!(status(&node, Method::PUT, "/v1/objects/a", None).await, 201);
    // Whoever reaches an open node may use it, and not shut others out.
    let body = json!({"name": "mine", "scopes": ["admin"]});
    let refused = node.request(Method::POST, "/v1/tokens").json(&body).send().await.unwrap();
    assert_eq!(refused.status(), 403);

    let ops = token(&data, "ops", "admin");
    assert_eq!(status(&node, Method::GET, "/v1/objects/a", None).await, 401);
    assert_eq!(status(&node, Method::GET, "/v1/objects/a", Some(&ops)).await, 200);
    assert_eq!(command(&data, &["ls"]), "a", "the socket needs no token");
    let socket = data.join("http.sock").metadata().unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let (status_of_socket, _) =
        curl(&["--unix-socket", data.join("http.sock").to_str().unwrap(), "http://x/v1/tokens"]);
    assert_eq!(status_of_socket, 200);

    // From elsewhere: by REELRING_TOKEN or a file.
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{ops}\n")).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    let url = node.url("");
    let listed = command(&elsewhere, &["ls", "--node", &url, "--token-file", file.to_str().unwrap()]);
    assert_eq!(listed, "a");
    let without = reelring(&elsewhere, &["ls", "--node", &url]);
    assert!(String::from_utf8_lossy(&without.stderr).contains("needs a token"), "{without:?}");

    let taken = reelring(&data, &["token", "create", "ops", "--scope", "read"]);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("revoke it first"), "{taken:?}");
    assert!(command(&data, &["token", "ls"]).contains("ops"));
    command(&data, &["token", "revoke", "ops"]);
    assert_eq!(status(&node, Method::GET, "/v1/objects/a", Some(&ops)).await, 200, "open again, as before the first");
    assert_eq!(command(&data, &["token", "ls"]), "");
    node.terminate();
    assert!(node.ended(MINUTES).await.success());
    assert!(!data.join("http.sock").exists());
}

/// As docs/api.md tells others to sign, written without a look at the node's own code.
fn sign_elsewhere(id: &str, key: &str, expires: u64, methods: &str, cover: &str, path: &str) -> String {
    let message = format!("reelring-url-1\n{expires}\n{methods}\n{cover}\n{path}");
    let code = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), message.as_bytes());
    format!("1.{id}.{expires}.{methods}.{cover}.{}", URL_SAFE_NO_PAD.encode(code))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_address_works_for_what_was_signed_and_nothing_else() {
    let folder = scratch("signed");
    let [data, foreign] = ["data", "foreign"].map(|name| folder.path().join(name));
    let ops = token(&data, "ops", "admin");
    let web: Value =
        serde_json::from_str(&command(&data, &["token", "create", "web", "--scope", "read,write", "--json"])).unwrap();
    let (id, key) = (web["id"].as_str().unwrap(), web["signing_key"].as_str().unwrap());
    let node = Node::start(&data).await;
    for name in ["films/a b.mp4", "films/c.mp4", "other/d.mp4"] {
        let path = format!("/v1/objects/{}", name.replace(' ', "%20"));
        assert_eq!(status(&node, Method::PUT, &path, Some(&ops)).await, 201);
    }
    let signed = command(&data, &["sign", "films/a b.mp4"]);
    assert!(signed.starts_with(&node.url("/v1/objects/films/a%20b.mp4?signature=1.")), "{signed}");
    assert_eq!(curl(&[&signed]).0, 200);
    assert_eq!(curl(&["-I", &signed]).0, 200);
    assert_eq!(curl(&["-r", "0-0", &signed]).0, 416, "the object is empty");
    assert_eq!(curl(&[&signed.replace("films/a%20b", "%66ilms%2Fa%20b")]).0, 200, "another spelling of the same key");
    assert_eq!(curl(&[&format!("{signed}&download=x.mp4")]).0, 200);
    assert_eq!(curl(&["-T", "/dev/null", &signed]).0, 403);
    assert_eq!(curl(&["-X", "DELETE", &signed]).0, 403);
    for (from, to) in [
        ("a%20b.mp4", "c.mp4"),
        ("films/a%20b.mp4", "films/"),
        ("/v1/objects/films/a%20b.mp4", "/v1/objects"),
        ("/v1/objects/films/a%20b.mp4", "/v1/jobs"),
        ("/v1/objects/films/a%20b.mp4", "/v1/tokens"),
        (".GET.", ".GET-PUT."),
        (".exact.", ".12."),
        ("signature=1.", "signature=1.0"),
        ("signature=1.", "signature=2."),
    ] {
        let (status, body) = curl(&[&signed.replace(from, to)]);
        assert_eq!(status, 403, "{from} → {to}: {}", String::from_utf8_lossy(&body));
    }
    assert_eq!(curl(&[&signed.replace("signature=", "sig=")]).0, 401);
    let mut altered = signed.clone();
    let last = altered.pop().unwrap();
    for other in ['A', 'B', 'C', 'D', 'E', 'w', 'x', '8'] {
        if other != last {
            assert_eq!(curl(&[&format!("{altered}{other}")]).0, 403);
        }
    }

    // A prefix: everything below, also as a list, nothing beside it.
    let below = command(&data, &["sign", "--prefix", "films/", "--expires", "1d"]);
    let under = |key: &str| below.replace("/films/?", &format!("/{key}?"));
    assert_eq!([curl(&[&under("films/c.mp4")]).0, curl(&[&under("films/a%20b.mp4")]).0], [200, 200]);
    assert_eq!(curl(&[&under("films/none")]).0, 404);
    for beside in ["other/d.mp4", "films", "filmsx/a", "films%2F..%2Fother%2Fd.mp4", "other/../films/c.mp4"] {
        let (status, _) = curl(&["--path-as-is", &under(beside)]);
        assert!(matches!(status, 400 | 403), "{beside}: {status}");
    }

    // An upload without a token.
    let upload = command(&data, &["sign", "new.bin", "--method", "PUT"]);
    let source = folder.path().join("source");
    std::fs::write(&source, b"hello").unwrap();
    assert_eq!(curl(&["-T", source.to_str().unwrap(), &upload]).0, 201);
    assert_eq!(curl(&[&upload]).0, 403, "signed for PUT alone");

    // Signed by another program with the token's key: valid, too late, of another key, for more than its token may.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let path = "/v1/objects/films/c.mp4";
    let at = |signature: &str| curl(&[&format!("{}?signature={signature}", node.url(path))]);
    assert_eq!(at(&sign_elsewhere(id, key, now + 60, "GET", "exact", path)).0, 200);
    let (late, problem) = at(&sign_elsewhere(id, key, now - 1, "GET", "exact", path));
    assert_eq!(late, 403);
    assert!(String::from_utf8_lossy(&problem).contains("expired at"), "{}", String::from_utf8_lossy(&problem));
    assert_eq!(at(&sign_elsewhere(id, &"0".repeat(64), now + 60, "GET", "exact", path)).0, 403);
    assert_eq!(at(&sign_elsewhere(id, key, now + 60, "GET", "3", path)).0, 403, "a prefix ends with a slash");
    assert_eq!(at(&sign_elsewhere("0123456789abcdef", key, now + 60, "GET", "exact", path)).0, 403);
    for garbage in ["", ".", "1", &"1.".repeat(100), &"9".repeat(500), "%00", "1.....", "💥"] {
        assert_eq!(at(garbage).0, 403, "{garbage}");
    }

    // Another node's signature, and one whose token was revoked.
    token(&foreign, "ops", "admin");
    let of_another = command(&foreign, &["sign", "films/c.mp4"]);
    let of_another = of_another.split("signature=").nth(1).unwrap();
    assert_eq!(at(of_another).0, 403);
    let by_web = sign_elsewhere(id, key, now + 60, "GET", "exact", path);
    command(&data, &["token", "revoke", "web"]);
    assert_eq!(at(&by_web).0, 403);
    assert_eq!(curl(&[&signed]).0, 200, "signed in the node's own name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_player_follows_a_signed_playlist_to_its_last_segment() {
    let folder = scratch("signed-player");
    let data = folder.path().join("data");
    let node = Node::start(&data).await;
    let film = std::fs::read(media::clip(320, 180, 30, 6)).unwrap();
    assert_eq!(node.put("film", film).send().await.unwrap().status(), 201);
    let job = node.submit(json!({"kind": "transcode", "source": "film", "ladder": ["144p"]})).await;
    let asset = node.done(&job, MINUTES).await["result"]["asset"].as_str().unwrap().to_string();
    token(&data, "ops", "admin");
    let signed: Value = serde_json::from_str(&command(&data, &["sign", "--asset", &asset, "--json"])).unwrap();
    let [main, page] = ["path", "page"].map(|name| node.url(signed[name].as_str().unwrap()));
    assert_eq!(curl(&[main.split('?').next().unwrap()]).0, 401);
    assert_eq!([curl(&[&page]).0, curl(&[&page.replace("/play/", "/v1/assets/")]).0], [200, 200]);

    // Exactly the addresses that the playlists have, resolved as a browser does.
    let mut waiting = vec![url::Url::parse(&main).unwrap()];
    let mut parts = 0;
    while let Some(address) = waiting.pop() {
        let (status, body) = curl(&[address.as_str()]);
        assert_eq!(status, 200, "{address}");
        if !address.path().ends_with(".m3u8") {
            assert!(!body.is_empty());
            parts += 1;
            continue;
        }
        let text = String::from_utf8(body).unwrap();
        for line in text.lines() {
            let uri = line.split("URI=\"").nth(1).and_then(|rest| rest.split('"').next());
            let uri = uri.or(Some(line).filter(|line| !line.starts_with('#') && !line.is_empty()));
            waiting.extend(uri.map(|uri| address.join(uri).unwrap()));
        }
    }
    assert!(parts >= 6, "two init segments and two segments of each rendition, not {parts}");
    let probe = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_packets",
            "-show_entries",
            "stream=codec_type,nb_read_packets",
            "-of",
            "json",
            &main,
        ])
        .output()
        .expect("ffprobe runs");
    let found: Value = serde_json::from_slice(&probe.stdout).unwrap();
    let video = found["streams"].as_array().unwrap().iter().find(|stream| stream["codec_type"] == "video").unwrap();
    assert_eq!(video["nb_read_packets"], "180", "{found}");
    let other = main.replace(&asset, &"0".repeat(32));
    assert_eq!(curl(&[&other]).0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_read_what_he_knows_the_name_of_when_that_is_wanted() {
    let folder = scratch("anonymous");
    let data = folder.path().join("data");
    let ops = token(&data, "ops", "admin");
    let node = Node::start_with(&data, &[("REELRING_ANONYMOUS", "read")]).await;
    assert_eq!(status(&node, Method::PUT, "/v1/objects/a", Some(&ops)).await, 201);
    assert_eq!(status(&node, Method::GET, "/v1/objects/a", None).await, 200);
    assert_eq!(status(&node, Method::GET, "/v1/objects/a", Some("wrong")).await, 401);
    for path in ["/v1/objects", "/v1/objects/", "/v1/objects/x/", "/v1/assets", "/metrics", "/v1/jobs", "/v1/tokens"] {
        assert_eq!(status(&node, Method::GET, path, None).await, 401, "{path}");
    }
    assert_eq!(status(&node, Method::PUT, "/v1/objects/b", None).await, 401);
    assert_eq!(status(&node, Method::DELETE, "/v1/objects/a", None).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_and_rebound_names_get_nothing_from_an_open_node() {
    let folder = scratch("rebinding");
    let data = folder.path().join("data");
    let settings = [("REELRING_HOSTS", "media.example.org"), ("REELRING_CORS_ORIGINS", "https://app.example")];
    let node = Node::start_with(&data, &settings).await;
    let put = |headers: &[(&str, &str)]| {
        let mut request = node.put("a", "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(put(&[]).await, 201);
    for host in ["evil.example", "127.0.0.1.evil.example:8080"] {
        assert_eq!(put(&[("host", host)]).await, 421, "{host}");
        let read = node.object("a").header("host", host).send().await.unwrap();
        assert_eq!(read.status(), 421);
        assert!(read.text().await.unwrap().contains("hosts"));
    }
    assert_eq!([put(&[("host", "localhost:1")]).await, put(&[("host", "media.example.org")]).await], [200, 200]);
    assert_eq!(put(&[("origin", "https://evil.example")]).await, 403);
    assert_eq!(put(&[("origin", "null")]).await, 403);
    assert_eq!(put(&[("sec-fetch-site", "cross-site")]).await, 403);
    assert_eq!(put(&[("origin", &node.url(""))]).await, 200);
    assert_eq!(put(&[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")]).await, 200);

    // A token is no browser's to add, so where it comes from does not matter; a password is.
    let ops = token(&data, "ops", "admin");
    let bearer = format!("Bearer {ops}");
    let basic = format!("Basic {}", STANDARD.encode(format!("x:{ops}")));
    let evil = [("host", "evil.example"), ("origin", "https://evil.example")];
    assert_eq!(put(&[&evil[..], &[("authorization", bearer.as_str())]].concat()).await, 200);
    assert_eq!(put(&[("origin", "https://evil.example"), ("authorization", basic.as_str())]).await, 403);
    assert_eq!(put(&[("authorization", basic.as_str())]).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_a_node_listens_only_with_a_token() {
    let folder = scratch("beyond");
    let data = folder.path().join("data");
    let everywhere = |data: &Path| {
        let mut command = serve(data, &[("REELRING_LISTEN", "0.0.0.0:0")]);
        let plain = command.get_args().map(Into::into).filter(|word: &std::ffi::OsString| word != "127.0.0.1:0");
        let plain: Vec<std::ffi::OsString> = plain.filter(|word| word != "--listen").collect();
        let mut new = Command::new(command.get_program());
        new.args(plain).env_clear().current_dir(folder.path());
        for (name, value) in command.get_envs() {
            new.envs(value.map(|value| (name.to_owned(), value.to_owned())));
        }
        let log = std::fs::File::options().create(true).append(true).open(data.with_extension("log")).unwrap();
        new.stdout(log.try_clone().unwrap()).stderr(log);
        command = new;
        command
    };
    let refused = everywhere(&data).status().unwrap();
    assert_eq!(refused.code(), Some(2));
    assert!(log_tail(&data).contains("reelring token create"), "{}", log_tail(&data));
    assert!(!data.exists(), "nothing was begun");

    let ops = token(&data, "ops", "admin");
    forget_address(&data);
    let node = Node::adopt(Owned::spawn(&mut everywhere(&data)), &data).await;
    assert_eq!(status(&node, Method::GET, "/v1/objects", None).await, 401);
    assert_eq!(status(&node, Method::GET, "/v1/objects", Some(&ops)).await, 200);
    assert!(node.log().contains("tokens travel unencrypted"), "{}", node.log());
    // Without its last token it does not become everybody's: it refuses all but the owner.
    command(&data, &["token", "revoke", "ops"]);
    assert_eq!(status(&node, Method::GET, "/v1/objects", None).await, 401);
    assert_eq!(command(&data, &["ls"]), "");
    node.kill();

    // A file that cannot be read opens nothing.
    std::fs::write(data.join("access.json"), "{").unwrap();
    assert_eq!(serve(&data, &[]).status().unwrap().code(), Some(1));
    assert!(log_tail(&data).contains("access.json"), "{}", log_tail(&data));
}
