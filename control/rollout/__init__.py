"""The rollout: observe -> assess -> decide -> persist -> publish, pure up to `decide`."""
