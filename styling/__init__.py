"""What surrounds a style transfer model: pictures, videos, colours, masks, and calm from frame to frame."""
