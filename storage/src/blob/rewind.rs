//! Going back to the last checkpoint, when what came after it turned out to be wrong or is sent again from there.
//!
//! The bytes given up stay in the file and are written over; nobody was promised them. A file that ends with them is cut
//! when it is sealed, and by `resume`.
//!
//! Cancel: a rewind dropped half way leaves the writer failed; the journal resumes it at the same place.

use super::writer::BlobWriter;
use crate::error::Result;

impl BlobWriter {
    /// Forgets what was written since the last checkpoint. Returns the length there.
    pub async fn rewind(&mut self) -> Result<u64> {
        self.check()?;
        assert!(self.journal.is_some(), "rewind of a blob without a journal");
        self.failed = true;
        self.batch = None;
        // Otherwise an old write could land on a new one.
        self.drain().await?;
        let recorded = &self.journal.as_ref().expect("checked above").recorded;
        let length = recorded.length;
        self.hashes.as_mut().expect("drained").go_back(recorded);
        self.abandoned_to = self.abandoned_to.max(self.submitted);
        self.submitted = length;
        if let Some(publisher) = &self.files.publisher {
            publisher.went_back(self.submitted);
        }
        self.failed = false;
        Ok(self.submitted)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::id::BlobId;
    use crate::{BlobMeta, Store, StoreOptions};

    fn content(seed: u8, len: usize) -> Bytes {
        (0..len).map(|at| (at as u32).wrapping_mul(0x9e37_79b9).to_le_bytes()[3] ^ seed).collect()
    }

    /// Writes, gives up, writes other bytes, with lengths around the block and the batch, also past the page cache.
    #[tokio::test]
    async fn what_was_given_up_is_in_no_blob() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions { direct_from: 1 << 20, ..StoreOptions::new(dir.path()) }).await.unwrap();
        let lengths = [0, 1, 5_000, 262_144, 300_000, 1 << 20, (3 << 20) + 17];
        for (kept, wrong, right) in
            lengths.iter().flat_map(|k| lengths.iter().flat_map(move |w| [0, 40_000, 2 << 20].map(|r| (*k, *w, r))))
        {
            let id = BlobId::new();
            let meta =
                BlobMeta { length_hint: (wrong % 2 == 0).then_some((kept + right) as u64), ..BlobMeta::default() };
            let mut writer = store.create_journaled(id, meta, vec![]).await.unwrap();
            writer.write(content(1, kept)).await.unwrap();
            assert_eq!(writer.checkpoint(vec![]).await.unwrap(), kept as u64);
            writer.write(content(2, wrong)).await.unwrap();
            assert_eq!(writer.rewind().await.unwrap(), kept as u64);
            assert_eq!(writer.len(), kept as u64);
            writer.write(content(3, right)).await.unwrap();
            let whole: Vec<u8> = [content(1, kept), content(3, right)].concat();
            let again = wrong == 5_000;
            if again {
                writer.checkpoint(vec![]).await.unwrap();
                drop(writer);
                writer = store.resume(id).await.unwrap().unwrap().0;
                assert_eq!(writer.len(), whole.len() as u64);
            }
            let sealed = writer.seal().await.unwrap();
            assert_eq!(sealed.blake3, *blake3::hash(&whole).as_bytes(), "{kept} {wrong} {right}");
            store.commit(vec![sealed], |_| Ok(())).await.unwrap();
            let reader = store.open_blob(id).await.unwrap();
            let mut at = 0;
            while at < whole.len() {
                let bytes = reader.read(at as u64, 1 << 20).await.unwrap();
                assert!(bytes == whole[at..at + bytes.len()], "{kept} {wrong} {right}: other bytes after {at}");
                at += bytes.len();
            }
        }
        store.close().await.unwrap();
    }
}
