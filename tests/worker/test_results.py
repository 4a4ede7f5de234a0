from worker.results import results_csv


def test_the_result_file_has_openais_columns_first_and_one_row_a_step_in_order():
    said = [
        {"step": 2, "train_loss": 1.5, "train_mean_token_accuracy": 0.5, "valid_loss": None, "learning_rate": 0.1},
        {"step": 1, "train_loss": 2.0, "train_mean_token_accuracy": 0.25, "valid_loss": None, "learning_rate": 0.2},
        {"step": 2, "train_loss": 1.5, "valid_loss": 1.75, "valid_mean_token_accuracy": 0.4, "full_valid_loss": 1.75},
    ]
    header, *rows = results_csv(said).decode().splitlines()
    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert [row.split(",")[:6] for row in rows] == [
        ["1", "2.0", "0.25", "", "", ""],
        ["2", "1.5", "0.5", "1.75", "0.4", "1.75"],
    ]


def test_a_step_that_was_repeated_after_a_crash_stands_once_as_last_told():
    said = [{"step": 1, "train_loss": 2.0, "tokens_per_s": 5}, {"step": 1, "train_loss": 2.0, "tokens_per_s": 7}]
    assert results_csv(said).decode().splitlines()[1:] == ["1,2.0,,,,,,,,7,,,,,,,,"]
