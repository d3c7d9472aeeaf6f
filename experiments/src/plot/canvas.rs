//! Drawing backend of the pictures: pixels for PNG, or SVG.

use std::error::Error;
use std::io;

use plotters::prelude::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind,
};

pub(super) enum Canvas<'a> {
    Pixels(BitMapBackend<'a>),
    Vectors(SVGBackend<'a>),
}

type Drawn<T> = Result<T, DrawingErrorKind<io::Error>>;

fn drawn<T, E: Error + Send + Sync>(result: Result<T, DrawingErrorKind<E>>) -> Drawn<T> {
    result.map_err(|error| match error {
        DrawingErrorKind::DrawingError(error) => {
            DrawingErrorKind::DrawingError(io::Error::other(error.to_string()))
        }
        DrawingErrorKind::FontError(error) => DrawingErrorKind::FontError(error),
    })
}

/// Forwards a call to the inner backend.
macro_rules! each {
    ($canvas:expr, $inner:ident => $call:expr) => {
        match $canvas {
            Canvas::Pixels($inner) => drawn($call),
            Canvas::Vectors($inner) => drawn($call),
        }
    };
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = io::Error;

    fn get_size(&self) -> (u32, u32) {
        match self {
            Self::Pixels(inner) => inner.get_size(),
            Self::Vectors(inner) => inner.get_size(),
        }
    }

    fn ensure_prepared(&mut self) -> Drawn<()> {
        each!(self, inner => inner.ensure_prepared())
    }

    fn present(&mut self) -> Drawn<()> {
        each!(self, inner => inner.present())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<()> {
        each!(self, inner => inner.draw_pixel(point, color))
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Drawn<()> {
        each!(self, inner => inner.draw_line(from, to, style))
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<()> {
        each!(self, inner => inner.draw_rect(upper_left, bottom_right, style, fill))
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn<()> {
        each!(self, inner => inner.draw_path(path, style))
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn<()> {
        each!(self, inner => inner.draw_circle(center, radius, style, fill))
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Drawn<()> {
        each!(self, inner => inner.fill_polygon(corners, style))
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        pos: BackendCoord,
    ) -> Drawn<()> {
        each!(self, inner => inner.draw_text(text, style, pos))
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, style: &S) -> Drawn<(u32, u32)> {
        each!(self, inner => inner.estimate_text_size(text, style))
    }
}
