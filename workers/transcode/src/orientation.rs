//! Display matrices: how cameras say which way is up.

use ffmpeg_sys_next as ff;

/// How the picture must be turned to be shown upright.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Clockwise: 0, 90, 180 or 270.
    pub degrees: u32,
    /// Mirrored left to right, before turning.
    pub mirrored: bool,
    /// An angle we do not apply.
    pub odd_angle: bool,
}

impl Orientation {
    pub fn from_matrix(matrix: &[i32; 9]) -> Orientation {
        let mut matrix = *matrix;
        let determinant = i64::from(matrix[0]) * i64::from(matrix[4]) - i64::from(matrix[1]) * i64::from(matrix[3]);
        let mirrored = determinant < 0;
        // SAFETY: the function reads nine numbers (and flips nine in place).
        let angle = unsafe {
            if mirrored {
                ff::av_display_matrix_flip(matrix.as_mut_ptr(), 1, 0);
            }
            ff::av_display_rotation_get(matrix.as_ptr())
        };
        if !angle.is_finite() {
            return Orientation::default();
        }
        // FFmpeg's angle is counter-clockwise.
        let clockwise = (-angle).rem_euclid(360.0);
        let quarter = (clockwise / 90.0).round();
        let odd_angle = (clockwise - quarter * 90.0).abs() > 1.0;
        let degrees = if odd_angle { 0 } else { (quarter as u32 % 4) * 90 };
        Orientation { degrees, mirrored, odd_angle }
    }

    pub fn swaps_sides(self) -> bool {
        self.degrees % 180 == 90
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(degrees: f64, mirrored: bool) -> Orientation {
        let mut matrix = [0; 9];
        // SAFETY: nine numbers.
        unsafe {
            ff::av_display_rotation_set(matrix.as_mut_ptr(), degrees);
            if mirrored {
                ff::av_display_matrix_flip(matrix.as_mut_ptr(), 1, 0);
            }
        }
        Orientation::from_matrix(&matrix)
    }

    #[test]
    fn display_matrices_become_quarter_turns() {
        for quarter in 0..4u32 {
            for mirrored in [false, true] {
                // The setter counts clockwise.
                let got = rotated(f64::from(quarter) * 90.0, mirrored);
                assert_eq!(got, Orientation { degrees: quarter * 90, mirrored, odd_angle: false });
            }
        }
        assert!(rotated(33.0, false).odd_angle);
        assert_eq!(rotated(33.0, false).degrees, 0);
        assert_eq!(Orientation::from_matrix(&[0; 9]), Orientation::default());
    }
}
