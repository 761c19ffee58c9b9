"""What surrounds a style transfer model: pictures, tiles, videos, colours, masks, and calm from frame to frame."""
