"""What surrounds a style transfer model: images, tiles, videos, colours, masks, and calm from frame to frame."""
