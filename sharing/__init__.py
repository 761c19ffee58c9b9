"""How a trained model is given away: as a graph that runs without this project, and with a card that describes it."""
