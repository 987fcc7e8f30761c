"""What a run will cost on a pod, before anybody pays for the pod."""
