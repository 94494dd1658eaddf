"""Training: responders, routers, and the choice of checkpoint and balance."""
