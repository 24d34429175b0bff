"""What is right and wrong with this node: pure checks over facts, and a thin collector of the facts."""
