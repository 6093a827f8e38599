//! The audio between decoder and encoder: samples and stretches of silence, in order. Silence costs no memory.

use std::collections::VecDeque;

enum Piece {
    Silence(u64),
    /// One vector per channel, and how much of them is used up.
    Pcm(Vec<Vec<f32>>, usize),
}

#[derive(Default)]
pub struct Samples {
    pieces: VecDeque<Piece>,
    held: u64,
}

impl Samples {
    /// Samples per channel waiting.
    pub fn held(&self) -> u64 {
        self.held
    }

    pub fn push_silence(&mut self, samples: u64) {
        if samples > 0 {
            self.pieces.push_back(Piece::Silence(samples));
            self.held += samples;
        }
    }

    /// Appends converted samples less the first `skip`, and says how many were skipped.
    pub fn push(&mut self, planes: Vec<Vec<f32>>, skip: u64) -> u64 {
        let length = planes.first().map_or(0, Vec::len);
        let skipped = length.min(usize::try_from(skip).unwrap_or(usize::MAX));
        if skipped < length {
            self.pieces.push_back(Piece::Pcm(planes, skipped));
            self.held += (length - skipped) as u64;
        }
        skipped as u64
    }

    /// Moves the next samples into `channels`, which are equally long and not longer than what is held.
    pub fn pop(&mut self, channels: &mut [&mut [f32]]) {
        let want = channels.first().map_or(0, |channel| channel.len());
        assert!(want as u64 <= self.held, "more samples wanted than held");
        self.held -= want as u64;
        let mut done = 0;
        while done < want {
            let Some(piece) = self.pieces.front_mut() else { return };
            let (used, empty) = match piece {
                Piece::Silence(left) => {
                    let used = (want - done).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    for channel in channels.iter_mut() {
                        channel[done..done + used].fill(0.0);
                    }
                    *left -= used as u64;
                    (used, *left == 0)
                }
                Piece::Pcm(planes, at) => {
                    let used = (want - done).min(planes[0].len() - *at);
                    for (channel, plane) in channels.iter_mut().zip(planes.iter()) {
                        channel[done..done + used].copy_from_slice(&plane[*at..*at + used]);
                    }
                    *at += used;
                    (used, *at == planes[0].len())
                }
            };
            done += used;
            if empty {
                self.pieces.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_out_in_order_across_pieces() {
        let mut samples = Samples::default();
        samples.push_silence(2);
        assert_eq!(samples.push(vec![vec![9.0, 1.0, 2.0], vec![9.0, -1.0, -2.0]], 1), 1);
        assert_eq!(samples.push(vec![vec![5.0], vec![5.0]], 7), 1);
        samples.push(vec![vec![3.0], vec![-3.0]], 0);
        samples.push_silence(u64::MAX / 2);
        let (mut left, mut right) = ([7.0; 4], [7.0; 4]);
        samples.pop(&mut [&mut left, &mut right]);
        assert_eq!(left, [0.0, 0.0, 1.0, 2.0]);
        assert_eq!(right, [0.0, 0.0, -1.0, -2.0]);
        samples.pop(&mut [&mut left[..2], &mut right[..2]]);
        assert_eq!(left[..2], [3.0, 0.0]);
        assert_eq!(samples.held(), u64::MAX / 2 - 1);
    }
}
