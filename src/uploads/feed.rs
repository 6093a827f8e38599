//! What an append asks for, what it comes to, and its bytes on their way to the task that takes them.

use bytes::Bytes;
use reelring_storage::Payer;
use tokio::sync::mpsc;

use super::checksum::Checksum;
use super::record::Record;

/// What a client asks for with an append.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// Where its bytes belong.
    pub offset: u64,
    /// How many come, if the request says so.
    pub bytes: Option<u64>,
    /// The length of the whole upload, for one that was begun without.
    pub length: Option<u64>,
    /// The upload ends with these bytes.
    pub completes: bool,
    /// What they must have.
    pub checksum: Option<Checksum>,
    /// The checksum comes with the last piece.
    pub checksum_follows: bool,
    /// Who pays for the memory that its bytes wait in.
    pub payer: Payer,
}

/// What an append has come to.
#[derive(Debug, Clone)]
pub struct Appended {
    pub record: Record,
    /// The durable length.
    pub offset: u64,
    /// When this completed an object: whether there was none under its key.
    pub created: Option<bool>,
}

/// The bytes of an append on their way to its task. Whoever fills it goes away in the middle: then the request broke off.
pub struct Feed(mpsc::Receiver<Piece>);

#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    /// All has come. The trailer's checksum, if there was one.
    End(Option<Checksum>),
}

impl Append {
    pub fn at(offset: u64) -> Append {
        Append { offset, ..Append::default() }
    }
}

impl Feed {
    /// `None` when whoever fills it is gone. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Piece> {
        self.0.recv().await
    }

    /// One piece waits at most: whoever has reserved the place may read the socket. It is taken until the append has its
    /// turn, so that nothing is read for one that is refused.
    pub fn channel() -> (mpsc::Sender<Piece>, Feed) {
        Feed::holding(Piece::Data(Bytes::new()))
    }

    /// No bytes.
    pub fn ended() -> Feed {
        Feed::holding(Piece::End(None)).1
    }

    fn holding(piece: Piece) -> (mpsc::Sender<Piece>, Feed) {
        let (sender, receiver) = mpsc::channel(1);
        let sent = sender.try_send(piece);
        debug_assert!(sent.is_ok(), "the channel has one place");
        (sender, Feed(receiver))
    }
}
