use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reelring_storage::{BlobId, BlobMeta, Key, Precondition, Store, StoreOptions};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::http::HttpMetrics;

const MIB: usize = 1 << 20;

struct Film {
    _dir: tempfile::TempDir,
    store: Store,
    id: BlobId,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Film {
    async fn of(length: usize) -> Film {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions::new(dir.path())).await.unwrap();
        let bytes: Vec<u8> = (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let key = Key::parse("film").unwrap();
        let mut writer = store.create(BlobMeta { key: Some("film".into()), ..BlobMeta::default() }).await.unwrap();
        writer.write(Bytes::from(bytes.clone())).await.unwrap();
        let sealed = writer.seal().await.unwrap();
        let id = sealed.id;
        store.put_object(&key, sealed, Precondition::None).await.unwrap();
        let path = found(&dir.path().join("blobs"), &id.to_string()).expect("the blob has a file");
        Film { _dir: dir, store, id, path, bytes }
    }

    async fn reader(&self) -> BlobReader {
        self.store.open_blob(self.id).await.unwrap()
    }

    /// Takes its pages out of memory; false where they stay, as on tmpfs. To read one, even without waiting, would have
    /// the kernel bring in many.
    fn evict(&self) -> bool {
        let file = File::open(&self.path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let (length, mut first) = (self.bytes.len(), 0u8);
        let (shared, read) = (rustix::mm::MapFlags::SHARED, rustix::mm::ProtFlags::READ);
        // SAFETY: a new map at an address of the kernel's choice, never touched, and unmapped below. mincore is asked of its
        // first page, and writes one byte.
        unsafe {
            let map = rustix::mm::mmap(std::ptr::null_mut(), length, read, shared, &file, 0).unwrap();
            assert_eq!(libc::mincore(map, 1, &raw mut first), 0);
            rustix::mm::munmap(map, length).unwrap();
        }
        first & 1 == 0
    }
}

fn found(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.map_while(Result::ok).find_map(|entry| match entry.file_name() == name {
        true => Some(entry.path()),
        false => found(&entry.path(), name),
    })
}

/// A client and what serves it.
async fn connection() -> (TcpStream, SendStream, Outgoing, SentBytes) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let sent = HttpMetrics::default().sent().clone();
    let outgoing = Outgoing::by_file(sent.clone());
    (client, SendStream::new(socket, outgoing.clone()), outgoing, sent)
}

/// The frame of a body of `part`, as hyper gets it.
async fn frame(outgoing: &Outgoing, blob: &BlobReader, part: Range<u64>) -> Bytes {
    let mut body = outgoing.body(blob, &part).expect("sent from the file");
    let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    frame.expect("one frame").unwrap().into_data().expect("of data")
}

/// Writes all of it as hyper does.
async fn write_all(stream: &mut SendStream, parts: &[Bytes]) -> io::Result<()> {
    let mut parts = parts.to_vec();
    while parts.iter().any(|part| !part.is_empty()) {
        let mut written = std::future::poll_fn(|cx| {
            let slices: Vec<_> = parts.iter().filter(|p| !p.is_empty()).map(|p| io::IoSlice::new(p)).collect();
            Pin::new(&mut *stream).poll_write_vectored(cx, &slices)
        })
        .await?;
        for part in &mut parts {
            let taken = written.min(part.len());
            let _ = part.split_to(taken);
            written -= taken;
        }
    }
    Ok(())
}

async fn received(client: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    tokio::time::timeout(Duration::from_secs(60), client.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

#[tokio::test]
async fn heads_and_files_arrive_in_their_order() {
    let film = Film::of(3 * MIB + 17).await;
    let blob = film.reader().await;
    let (mut client, mut stream, outgoing, sent) = connection().await;
    for part in [0..3 * MIB + 17, 5..6, MIB - 1..3 * MIB + 17, 2 * MIB + 4096..2 * MIB + 4096 + 32_768] {
        let range = part.start as u64..part.end as u64;
        let parts = [
            Bytes::from_static(b"head "),
            frame(&outgoing, &blob, range.clone()).await,
            Bytes::from_static(b" and "),
            frame(&outgoing, &blob, range).await,
            Bytes::from_static(b" end"),
        ];
        let expected =
            [&b"head "[..], &film.bytes[part.clone()], b" and ", &film.bytes[part.clone()], b" end"].concat();
        let (written, got) = tokio::join!(write_all(&mut stream, &parts), received(&mut client, expected.len()));
        written.unwrap();
        assert!(got == expected, "{part:?}");
    }
    let total: u64 = 2 * (3 * MIB as u64 + 17 + 1 + 2 * MIB as u64 + 18 + 32_768);
    assert_eq!(sent.sendfile.get() + sent.reactor.get(), total);
    assert!(outgoing.parts().unwrap().is_empty(), "what was sent is let go");
}

/// Past the page cache at the first time, through it at the second, and from the file ever after.
#[tokio::test]
async fn cold_bytes_are_fetched_verified_and_asked_for_again_sent_from_the_file() {
    let film = Film::of(5 * MIB + 1).await;
    let blob = film.reader().await;
    if !film.evict() {
        println!("skipped: this file system keeps its pages in memory");
        return;
    }
    let (mut client, mut stream, outgoing, sent) = connection().await;
    let length = film.bytes.len();
    let mut from_file = [0; 3];
    for times in &mut from_file {
        let before = sent.sendfile.get();
        let parts = [frame(&outgoing, &blob, 0..length as u64).await];
        let (written, got) = tokio::join!(write_all(&mut stream, &parts), received(&mut client, length));
        written.unwrap();
        assert!(got == film.bytes);
        *times = sent.sendfile.get() - before;
    }
    assert_eq!(sent.sendfile.get() + sent.reactor.get(), 3 * length as u64);
    // What lies around the footer came into memory with it.
    assert!(from_file[0] <= MIB as u64, "{from_file:?}: the first time is told from the second");
    assert!(from_file[1] > 4 * MIB as u64, "{from_file:?}: what was fetched again is in memory");
    assert_eq!(from_file[2], length as u64, "{from_file:?}: and stays there");
}

#[tokio::test]
async fn a_damaged_block_is_never_sent() {
    let film = Film::of(2 * MIB).await;
    let damaged = MIB + 100;
    let file = File::options().write(true).open(&film.path).unwrap();
    file.write_at(&[film.bytes[damaged] ^ 1], damaged as u64).unwrap();
    let blob = film.reader().await;
    let (mut client, mut stream, outgoing, _) = connection().await;
    let parts = [frame(&outgoing, &blob, 0..film.bytes.len() as u64).await];
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        let _ = client.read_to_end(&mut got).await;
        got
    });
    write_all(&mut stream, &parts).await.unwrap_err();
    drop(stream);
    let got = reading.await.unwrap();
    assert!(got.len() <= MIB && got == film.bytes[..got.len()], "{} bytes", got.len());
}

#[tokio::test]
async fn a_deleted_blob_is_sent_to_its_end() {
    let film = Film::of(8 * MIB).await;
    let blob = film.reader().await;
    let (mut client, mut stream, outgoing, _) = connection().await;
    let parts = [frame(&outgoing, &blob, 0..film.bytes.len() as u64).await];
    drop(blob);
    let (written, got) = tokio::join!(write_all(&mut stream, &parts), async {
        let mut got = received(&mut client, MIB).await;
        assert!(film.store.delete_object(&Key::parse("film").unwrap(), Precondition::None).await.unwrap());
        assert!(!film.path.exists());
        got.extend(received(&mut client, 7 * MIB).await);
        got
    });
    written.unwrap();
    assert!(got == film.bytes);
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_no_buffer() {
    let film = Film::of(24 * MIB).await;
    let blob = film.reader().await;
    film.evict();
    let (mut client, mut stream, outgoing, _) = connection().await;
    let parts = [frame(&outgoing, &blob, 0..film.bytes.len() as u64).await];
    let writing = tokio::spawn(async move { write_all(&mut stream, &parts).await });
    // Until the socket is full and what was fetched ahead has come.
    let mut settled = 0;
    for _ in 0..2_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        settled = if film.store.stats().buffer_bytes == 0 { settled + 1 } else { 0 };
        if settled == 40 {
            break;
        }
    }
    assert_eq!(settled, 40, "{:?} bytes of buffers", film.store.stats().buffer_bytes);
    assert!(!writing.is_finished(), "24 MiB fit into the socket: the test needs a larger film");
    assert!(received(&mut client, film.bytes.len()).await == film.bytes);
    writing.await.unwrap().unwrap();
}

/// What was read for it and given back is read again once; after that nothing waits for it but in the page cache.
#[tokio::test]
async fn a_client_that_pauses_is_served_from_the_page_cache_from_then_on() {
    let film = Film::of(32 * MIB).await;
    let blob = film.reader().await;
    if !film.evict() {
        println!("skipped: this file system keeps its pages in memory");
        return;
    }
    let (mut client, mut stream, outgoing, sent) = connection().await;
    let parts = [frame(&outgoing, &blob, 0..film.bytes.len() as u64).await];
    let (written, got) = tokio::join!(write_all(&mut stream, &parts), async {
        let mut got = received(&mut client, 2 * MIB).await;
        // The socket fills, and stays so.
        tokio::time::sleep(crate::limits::SEND_PAUSE * 4).await;
        assert_eq!(film.store.stats().buffer_bytes, 0);
        got.extend(received(&mut client, 30 * MIB).await);
        got
    });
    written.unwrap();
    assert!(got == film.bytes);
    assert_eq!(sent.sendfile.get() + sent.reactor.get(), film.bytes.len() as u64);
    // Before the pause: what was taken, what the sockets hold, and what was in hand.
    assert!(sent.reactor.get() < 20 * MIB as u64, "{} bytes from buffers", sent.reactor.get());
    // One that keeps up again goes past the page cache again, as soon as it has taken a whole answer.
    film.evict();
    let before = sent.reactor.get();
    for length in [MIB as u64, 0] {
        let other = Film::of(8 * MIB).await;
        let blob = other.reader().await;
        other.evict();
        let length = if length == 0 { other.bytes.len() as u64 } else { length };
        let parts = [frame(&outgoing, &blob, 0..length).await];
        let (written, got) = tokio::join!(write_all(&mut stream, &parts), received(&mut client, length as usize));
        written.unwrap();
        assert!(got == other.bytes[..length as usize]);
    }
    assert!(sent.reactor.get() - before > 6 * MIB as u64, "{} bytes from buffers", sent.reactor.get() - before);
}

#[tokio::test]
async fn what_passes_through_memory_or_has_no_bytes_has_no_file() {
    let film = Film::of(MIB).await;
    let blob = film.reader().await;
    let (_client, _stream, outgoing, sent) = connection().await;
    assert!(outgoing.body(&blob, &(7..7)).is_none());
    assert!(Outgoing::by_memory(sent).body(&blob, &(0..MIB as u64)).is_none());
}
