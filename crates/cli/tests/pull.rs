//! `unicorn pull` from a hub in a thread of the test: a model comes, a cut download goes on, a wrong digest is refused.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use common::{Ran, User};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NAME: &str = "tiny.Q4_0.gguf";

/// One repository, `org/tiny-GGUF`, with one file, and what is to go wrong with it.
struct HubFile {
    body: Vec<u8>,
    digest: String,
    /// What becomes of the next transfers.
    next: Vec<Transfer>,
    /// Where transfers began.
    starts: Vec<usize>,
}

/// What becomes of a transfer after so many bytes.
#[derive(Clone, Copy)]
enum Transfer {
    /// The connection is closed.
    Cut(usize),
    /// Nothing more comes, until the client goes away.
    Stalls(usize),
}

/// Serves the file until the test ends; returns the address.
fn serve(file: &Arc<Mutex<HubFile>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (file, own) = (file.clone(), url.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is what some of the tests are about.
            let _ = answer(stream, &file, &own);
        }
    });
    url
}

/// One request a connection, by the hub's routes: the listing, the redirect that names size and digest, the bytes.
fn answer(mut stream: TcpStream, file: &Mutex<HubFile>, own: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut start = 0;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse().unwrap_or(0);
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut file = file.lock().unwrap();
    let total = file.body.len();
    let head = |status: u16, length: usize, more: &str| {
        format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n")
    };
    if path == "/api/models/org/tiny-GGUF/revision/main" {
        let listing = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{NAME}"}}]}}"#);
        return stream.write_all((head(200, listing.len(), "") + &listing).as_bytes());
    }
    if path == format!("/org/tiny-GGUF/resolve/{COMMIT}/{NAME}") {
        let digest = &file.digest;
        let more = format!("location: {own}/cdn\r\nx-linked-size: {total}\r\nx-linked-etag: \"{digest}\"\r\n");
        return stream.write_all(head(302, 0, &more).as_bytes());
    }
    if path != "/cdn" {
        return stream.write_all(head(404, 0, "").as_bytes());
    }
    let status = if start > 0 { 206 } else { 200 };
    let more = format!("etag: \"v1\"\r\ncontent-range: bytes {start}-{}/{total}\r\n", total - 1);
    stream.write_all(head(status, total - start, if start > 0 { &more } else { "etag: \"v1\"\r\n" }).as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    file.starts.push(start);
    let next = if file.next.is_empty() { None } else { Some(file.next.remove(0)) };
    let sent = match next {
        None => &file.body[start..],
        Some(Transfer::Cut(bytes) | Transfer::Stalls(bytes)) => &file.body[start..start + bytes],
    };
    stream.write_all(sent)?;
    drop(file);
    if let Some(Transfer::Stalls(_)) = next {
        stream.flush()?;
        stream.read_exact(&mut [0])?;
    }
    Ok(())
}

fn hub(next: &[Transfer]) -> (Arc<Mutex<HubFile>>, String) {
    let body = testkit::convert::to_gguf(&testkit::Fixture::load("qwen2").dir).finish();
    let digest = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = Arc::new(Mutex::new(HubFile { body, digest, next: next.to_vec(), starts: Vec::new() }));
    let url = serve(&file);
    (file, url)
}

fn pull(user: &User, url: &str) -> Ran {
    user.command(&["pull", "org/tiny-GGUF"]).env("HF_ENDPOINT", url).output().unwrap().into()
}

#[test]
fn a_model_is_pulled_and_can_be_used_by_its_name() {
    let user = User::new();
    let (file, url) = hub(&[]);
    let pulled = pull(&user, &url);
    let path = pulled.ok().trim_end();
    assert_eq!(std::fs::read(path).unwrap(), file.lock().unwrap().body);
    assert!(pulled.err.contains("fetched; unicorn run --model org/tiny-GGUF"), "{pulled:?}");
    let json = user.run(&["inspect", "org/tiny-GGUF", "--json"]).json();
    assert_eq!(json["model"]["architecture"], "qwen2");
    let again = pull(&user, &url);
    assert_eq!(again.ok().trim_end(), path);
    assert!(again.err.contains("here already"), "{again:?}");
    assert_eq!(file.lock().unwrap().starts, [0], "one transfer");
}

#[test]
fn a_cut_transfer_is_taken_up_again() {
    let user = User::new();
    let (file, url) = hub(&[Transfer::Cut(100_000), Transfer::Cut(50_000)]);
    let pulled = pull(&user, &url);
    let file = file.lock().unwrap();
    assert_eq!(std::fs::read(pulled.ok().trim_end()).unwrap(), file.body);
    assert_eq!(file.starts, [0, 100_000, 150_000]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_goes_on_where_it_stopped() {
    const FIRST: usize = 300_000;
    let user = User::new();
    let (file, url) = hub(&[Transfer::Stalls(FIRST)]);
    let mut command = user.command(&["pull", "org/tiny-GGUF"]);
    let mut child = command.env("HF_ENDPOINT", &url).stderr(std::process::Stdio::null()).spawn().unwrap();
    let partial = || user.run(&["list", "--json"]).json()[0]["bytes"].as_u64();
    let mut here = partial();
    for _ in 0..200 {
        if here == Some(FIRST as u64) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        here = partial();
    }
    assert_eq!(here, Some(FIRST as u64), "what came is listed while the rest is waited for");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success(), "a client whose peer stalls waits");
    assert!(!child.wait().unwrap().success(), "an interrupted pull fails");
    let list = user.run(&["list"]);
    assert!(list.ok().contains("partial"), "{list:?}");
    user.run(&["inspect", "org/tiny-GGUF"]).fails(2, &["org/tiny-GGUF"]);

    let pulled = pull(&user, &url);
    let file = file.lock().unwrap();
    assert_eq!(std::fs::read(pulled.ok().trim_end()).unwrap(), file.body);
    assert_eq!(file.starts, [0, FIRST]);
}

#[test]
fn bytes_of_another_digest_get_no_name() {
    let user = User::new();
    let (file, url) = hub(&[]);
    file.lock().unwrap().digest = "0".repeat(64);
    pull(&user, &url).fails(1, &["SHA-256"]);
    assert_eq!(user.run(&["inspect", "org/tiny-GGUF"]).code, Some(2));
}
